"""What a run says: lines on the console of rank 0, and one JSON object per event in
SAVE/metrics.jsonl."""

import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self, TextIO

from megatron_yuyuan.errors import NO_SPACE, SpaceError, refused_by_disk

SCHEMA = 1
"""Version of the objects in metrics.jsonl; docs/metrics.md describes it."""


class Sink:
    """Something that shows the events of a run: see docs/metrics.md for their names and values."""

    def start(self) -> None:
        """The first step is about to be taken."""

    def event(self, event: str, values: dict) -> None:
        """Something has happened."""

    def close(self) -> None:
        """The run is over, by an error perhaps; it may never have been started."""


class Log:
    """The voice of a job. Only rank 0 speaks; every other rank holds a silent one.

    Lines go to the console, events to metrics.jsonl and to every sink that was added. As a context
    it lasts from the first step to the end of the run, however that comes.
    """

    def __init__(self, directory: str | Path | None, speaks: bool):
        self._speaks, self._sinks = speaks, list[Sink]()
        metrics = MetricsFile(Path(directory) / "metrics.jsonl") if directory and speaks else None
        self.has_history = bool(metrics and metrics.has_history)
        """The file held something before this run: a killed run's steps, perhaps."""
        if metrics:
            self.add(metrics)

    def add(self, sink: Sink) -> None:
        """Send the events from now on there too."""
        self._sinks.append(sink)

    def __enter__(self) -> Self:
        for sink in self._sinks:
            sink.start()
        return self

    def __exit__(self, *_) -> None:
        with ExitStack() as closed:  # the last first, and the others where one raises
            for sink in self._sinks:
                closed.callback(sink.close)

    def line(self, text: str) -> None:
        """Print on rank 0. Raises SpaceError where stdout is a file on a full disk."""
        if self._speaks:
            with readers_may_leave():
                print(text, flush=True)

    def event(self, event: str, **values) -> None:
        """Tell every sink, with the `time` of day. Raises DataError where the disk refuses, and of these
        SpaceError where it is full."""
        values = {"time": time.time(), **values}
        for sink in self._sinks:
            sink.event(event, values)


@contextmanager
def readers_may_leave() -> Iterator[None]:
    """A reader of stdout who has gone (head, a closed terminal) does not end the run: what is written
    from then on goes nowhere. Raises SpaceError where it is a file on a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO, *NO_SPACE):
            raise
        silence(sys.stdout)
        if error.errno in NO_SPACE:
            raise full_output(error) from None


def silence(stream: TextIO) -> None:
    """What waits to be written to stdout or stderr, and what comes, goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def full_output(error: OSError) -> SpaceError:
    """The error for a disk on which what a command says or makes has no room."""
    return SpaceError(
        f"cannot write {error.filename or 'the output'}: {error.strerror}",
        "what this command says or makes would be cut",
        "free space there, or send its output elsewhere",
    )


class MetricsFile(Sink):
    """metrics.jsonl: an object has `event` and `schema`; docs/metrics.md lists them.

    Floats are written with repr, so that equal strings mean equal bits; null where they are not
    finite. A line is written and flushed whole; a killed run may cut the last. The file is opened
    by the first event.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file: TextIO | None = None
        self.has_history = path.exists() and path.stat().st_size > 0

    def event(self, event: str, values: dict) -> None:
        """Append one object. Raises DataError where the disk refuses, and of these SpaceError where it is
        full."""
        finite = {
            k: None if type(v) is float and not math.isfinite(v) else v for k, v in values.items()
        }
        text = json.dumps({"event": event, "schema": SCHEMA, **finite}, allow_nan=False)
        with self._refusals():
            self._file = self._file or self._open()
            self._file.write(text + "\n")
            self._file.flush()

    def close(self) -> None:
        """Raises as `event` does: what was refused there is tried once more."""
        file, self._file = self._file, None
        if file:
            with self._refusals():
                file.close()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """What the disk says, as an error of ours."""
        try:
            yield
        except OSError as error:
            raise refused_by_disk(error)(
                f"cannot write {self._path}: {error.strerror}",
                "every step of a run is recorded there",
                "a --save directory with room that may be written to",
            ) from None

    def _open(self) -> TextIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        was_cut = self.has_history and self._path.read_bytes()[-1:] != b"\n"
        file = self._path.open("a", encoding="utf-8")
        if was_cut:  # a run killed in the middle of a line: close it, so that ours stands alone
            file.write("\n")
        return file


class Console(Sink):
    """Says what is worth a line on any console: evaluations, the texts that were continued at them, and
    steps that were passed over."""

    def __init__(self, line: Callable[[str], None]):
        self._line = line

    def event(self, event: str, values: dict) -> None:
        if event == "evaluation":
            loss, perplexity = values["validation_loss"], values["validation_perplexity"]
            self._line(
                f" validation loss at iteration {values['iteration']} | lm loss value: {loss:.6E} | "
                f"lm loss PPL: {perplexity:.6E} |"
            )
        elif event == "skip":
            (first, last), old = values["samples"], values["loss_scale"]
            new = values["next_loss_scale"]
            self._line(
                f"warning: iteration {values['iteration']} skipped: {values['reason']}, loss "
                f"{values['lm_loss']}, gradient norm {values['grad_norm']}, on samples {first} to {last}"
                f"{f', loss scale {old:g} -> {new:g}' if new != old else ''}"
            )
        elif event == "rollback":
            (first, last), spike = values["left_out"], values["spike"]
            self._line(
                f"warning: loss {spike['lm_loss']:.6g} at iteration {spike['iteration']} is a spike: back to "
                f"iteration {values['iteration']}, and samples {first} to {last} are left out"
            )
        elif event == "continuations":
            for text in values["texts"]:
                words = printable(f"{text['prompt']} [[{text['continuation']}]]")
                self._line(f" continued at iteration {values['iteration']} | {words}")


def printable(text: str) -> str:
    """A text in one line, without what would command a terminal: a young model writes any byte."""
    shown = (c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return " ".join("".join(shown).split())


class MegatronLines(Console):
    """A log file's console: every `interval` steps, and after the last, Megatron-LM's own line, our
    figures appended.

    Loss and times are means over the steps since the last line. Source of the format:
    megatron/training/training.py, `training_log`.
    """

    def __init__(
        self, line: Callable[[str], None], interval: int, last: int, log_throughput: bool = False
    ):
        super().__init__(line)
        self._interval, self._last, self._log_throughput = interval, last, log_throughput
        self._steps: list[dict] = []
        """Since the last line, those passed over too."""

    def event(self, event: str, values: dict) -> None:
        super().event(event, values)
        if event in ("step", "skip"):
            self._steps.append(values)
            if values["iteration"] % self._interval == 0 or values["iteration"] == self._last:
                self._line(self._megatrons() + self._ours())
                self._steps = []

    def _megatrons(self) -> str:
        step, taken = self._steps[-1], [s["lm_loss"] for s in self._steps if "reason" not in s]
        throughput = f" throughput per GPU (TFLOP/s/GPU): {self._mean('tflops_per_device'):.1f} |"
        loss = f" lm loss: {sum(taken) / len(taken):.6E} |" if taken else ""
        return (
            f" [{datetime.now():%Y-%m-%d %H:%M:%S.%f}]"
            f" iteration {step['iteration']:8d}/{self._last:8d} |"
            f" consumed samples: {step['consumed_samples']:12d} |"
            f" elapsed time per iteration (ms): {1000 * self._seconds() / len(self._steps):.1f} |"
            f"{throughput if self._log_throughput else ''}"
            f" learning rate: {step['learning_rate']:.6E} |"
            f" global batch size: {step['global_batch_size']:5d} |{loss}"
            f" loss scale: {step['loss_scale']:.1f} | grad norm: {step['grad_norm']:.3f} |"
            f" number of skipped iterations: {len(self._steps) - len(taken):3d} |"
            f" number of nan iterations: {sum(map(_is_nan, self._steps)):3d} |"
        )

    def _ours(self) -> str:
        step = self._steps[-1]
        mfu = f" MFU: {self._mean('mfu'):.1%} |" if "mfu" in step else ""
        return (
            f" tokens/s: {self._mean('tokens_per_second'):.0f} |{mfu}"
            f" ETA: {duration(step['eta_seconds'])} |"
            f" memory (GiB): {step['memory_bytes'] / 2**30:.2f} |"
        )

    def _seconds(self) -> float:
        return sum(step["seconds"] for step in self._steps)

    def _mean(self, rate: str) -> float:
        """Of something per second, over the time of all these steps."""
        return sum(step[rate] * step["seconds"] for step in self._steps) / self._seconds()


def _is_nan(step: dict) -> bool:
    """As Megatron-LM counts: the loss was not finite. A gradient may overflow under a finite loss."""
    return not math.isfinite(step["lm_loss"])


def duration(seconds: float) -> str:
    """`2 days, 3:04:05`."""
    return str(timedelta(seconds=round(seconds)))


def read_events(path: str | Path) -> Iterator[dict]:
    """Every object of a metrics.jsonl in order, what a restart took back too; a cut line is skipped."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            with suppress(json.JSONDecodeError):
                yield json.loads(line)


def standing(events: Iterable[dict], name: str) -> list[dict]:
    """The events of one name, less what a restart took back."""
    kept: list[dict] = []
    for values in events:
        if values["event"] == "restart":
            kept = [old for old in kept if old["iteration"] <= values["iteration"]]
        elif values["event"] == name:
            kept.append(values)
    return kept


def read_metrics(path: str | Path, event: str) -> list[dict]:
    """The objects of one event in a metrics.jsonl, as `standing` gives them."""
    return standing(read_events(path), event)
