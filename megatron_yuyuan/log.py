"""What a run says: lines on the console of rank 0, and one JSON object per event in
SAVE/metrics.jsonl."""

import json
import math
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TextIO

from megatron_yuyuan.errors import DataError

SCHEMA = 1
"""Version of the objects in metrics.jsonl; docs/metrics.md describes it."""


class Log:
    """The voice of a job. Only rank 0 speaks; every other rank holds a silent one.

    An object of metrics.jsonl has `event` (step, skip, evaluation, save, restart) and `schema`. Floats
    are written with repr, so that equal strings mean equal bits. A line is written and flushed
    whole; a killed run may cut the last. The file is opened by the first event.
    """

    def __init__(self, directory: str | Path | None, speaks: bool):
        self._path = Path(directory) / "metrics.jsonl" if directory and speaks else None
        self._file: TextIO | None = None
        self._console = speaks
        self.has_history = bool(self._path and self._path.exists() and self._path.stat().st_size)
        """The file held something before this run: a killed run's steps, perhaps."""
        self._skipped = self._not_finite = 0  # since the last line of a step, as in Megatron-LM

    def line(self, text: str) -> None:
        """Print on rank 0. A reader who has gone (head, a closed terminal) does not end the run."""
        if self._console:
            try:
                print(text, flush=True)
            except BrokenPipeError:
                self._console = False
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def event(self, event: str, **values) -> None:
        """Append one object to metrics.jsonl. Raises DataError where the disk refuses."""
        if not self._path:
            return
        try:
            self._file = self._file or self._open(self._path)
            text = json.dumps({"event": event, "schema": SCHEMA, **values}, allow_nan=False)
            self._file.write(text + "\n")
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"cannot write {self._path}: {error.strerror}",
                "every step of a run is recorded there",
                "a --save directory with room that may be written to",
            ) from None

    def skip(self, values: dict) -> None:
        """Say that a step was passed over, and count it; figures that are not finite become null."""
        loss, norm = values["lm_loss"], values["grad_norm"]
        finite = math.isfinite(loss) and math.isfinite(norm)
        self._skipped, self._not_finite = self._skipped + 1, self._not_finite + (not finite)
        shown = {k: v if math.isfinite(v) else None for k, v in values.items() if type(v) is float}
        self.event("skip", **values | shown)
        first, last = values["samples"]
        self.line(
            f"warning: iteration {values['iteration']} skipped: {values['reason']}, loss {loss}, gradient "
            f"norm {norm}, on samples {first} to {last}"
        )

    @staticmethod
    def _open(path: Path) -> TextIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        was_cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        file = path.open("a", encoding="utf-8")
        if was_cut:  # a run killed in the middle of a line: close it, so that ours stands alone
            file.write("\n")
        return file

    def step(self, values: dict, train_iters: int) -> None:
        """Print one step in Megatron-LM's own line, our figures appended.

        Source of the format: megatron/training/training.py, `training_log`.
        """
        self.line(
            f" [{datetime.now():%Y-%m-%d %H:%M:%S.%f}] iteration {values['iteration']:8d}/{train_iters:8d} |"
            f" consumed samples: {values['consumed_samples']:12d} |"
            f" elapsed time per iteration (ms): {1000 * values['seconds']:.1f} |"
            f" learning rate: {values['learning_rate']:.6E} |"
            f" global batch size: {values['global_batch_size']:5d} |"
            f" lm loss: {values['lm_loss']:.6E} |"
            f" loss scale: 1.0 | grad norm: {values['grad_norm']:.3f} |"
            f" number of skipped iterations: {self._skipped:3d} |"
            f" number of nan iterations: {self._not_finite:3d} |"
            f" tokens/s: {values['tokens_per_second']:.0f} |"
        )
        self._skipped = self._not_finite = 0


def read_metrics(path: str | Path, event: str) -> list[dict]:
    """The objects of one event as a reader wants them: what a restart took back is left out, a cut
    line skipped."""
    kept: list[dict] = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if values["event"] == "restart":
            kept = [old for old in kept if old["iteration"] <= values["iteration"]]
        elif values["event"] == event:
            kept.append(values)
    return kept
