"""Trials of commands that make files: killed at one point and started again, they make the same bytes.

Between the two starts the output is absent, or there and whole already.
"""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from commands import ROOT, tokenizer_flags
from faults.jobs import Ended, run_job
from faults.kills import NotSurvived, Outcome, Point, require
from tiny_run import save_run

PREPROCESS = ROOT / "tests" / "faults" / "small_units.py"
LINES = 600
"""Documents of the text that is preprocessed."""


@dataclass(frozen=True)
class Making:
    """A command that makes files in an empty folder."""

    command: Callable[[Path], tuple[object, ...]]
    """folder -> the command that is killed there."""
    whole: Callable[[Path], bool]
    """Whether its output is there by its name, so that somebody could use it."""
    begin: Callable[[Path], None] = Path.mkdir
    """Make the folder, with what the command finds there."""


class FileTrials:
    """Trials of one making, beside the files that an undisturbed one leaves."""

    def __init__(self, making: Making, folder: Path):
        self._making, self._place = making, folder / "output"
        self.passes: tuple[Point, ...] = ()
        making.begin(self._place)
        try:
            ended = self._start()
            require(ended.statuses == (0,), ended.said)
            self.expected = files(self._place)
            """Path -> content."""
            self.passes = tuple(Point(*passed) for passed in ended.passes)
        finally:
            shutil.rmtree(self._place)

    def outcome(self, point: Point) -> Outcome:
        """Of a start that is killed, and one that is not. Both lie where the undisturbed one lay."""
        self._making.begin(self._place)
        try:
            self._survive(point)
            return Outcome("")
        except (NotSurvived, TimeoutError) as error:
            return Outcome(f"{point}: {error}")
        finally:
            shutil.rmtree(self._place)

    def _survive(self, point: Point) -> None:
        ended = self._start("--fault", point)
        died = ended.statuses[0] in (-signal.SIGKILL, 75)  # 75: it was a worker
        require(died and not ended.orphans, f"{ended.statuses} {ended.orphans} {ended.said}")
        is_whole = files(self._place).items() >= self.expected.items()
        require(is_whole or not self._making.whole(self._place), "it left a part under its name")
        if is_whole and self._making.whole(self._place):
            return
        ended = self._start()
        require(ended.statuses == (0,), f"then: {ended.statuses} {ended.said}")
        require(files(self._place) == self.expected, "then the files are others")

    def _start(self, *more: object) -> Ended:
        return run_job((*self._making.command(self._place), *more))


def files(folder: Path) -> dict[str, bytes]:
    """Path within a folder -> content; not what a killed process began under a name of its own."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.endswith(".tmp") for part in path.relative_to(folder).parts)
    }


def preprocessing(prepared: Path, inputs: Path) -> Making:
    """Text to a shard, in one command, by one worker at a time. inputs: a new file of texts."""
    command = _preprocess(prepared, inputs)
    return Making(lambda folder: command(folder), _has_shard)


def merging(prepared: Path, inputs: Path) -> Making:
    """The last command of two tasks that have shared the reading."""
    command = _preprocess(prepared, inputs)

    def begin(folder: Path) -> None:
        folder.mkdir()
        for task in range(2):
            ended = run_job((*command(folder), "--num-tasks", 2, "--task-index", task))
            require(ended.statuses == (0,), ended.said)

    return Making(lambda folder: command(folder), _has_shard, begin)


def exporting(run: Path) -> Making:
    """A run directory, which is made, to one of Hugging Face's."""
    save_run(run, ["Question:What is gout? answer: Gout is a disease."] * 4)
    tool = ROOT / "tools" / "convert_checkpoint.py"
    return Making(
        lambda folder: (tool, "--to", "hf", "--load", run, "--save", folder / "export"),
        lambda folder: (folder / "export").exists(),
    )


def _preprocess(prepared: Path, inputs: Path) -> Callable[[Path], tuple[object, ...]]:
    texts = ({"text": f"Gout number {n} is a disease of {n % 7} joints."} for n in range(LINES))
    inputs.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    flags = ("--append-eod", "--workers", 1, *tokenizer_flags(prepared / "tokenizer"))
    return lambda folder: (PREPROCESS, "--input", inputs, "--output-prefix", folder / "out", *flags)


def _has_shard(folder: Path) -> bool:
    return (folder / "out_text_document.idx").exists()
