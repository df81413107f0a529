"""Kills, and what is left after them: docs/reliability.md holds the table that this prints.

    python tools/benchmark/survival.py [--only saves steps ...] [--trials 25] [--output TABLE.md]

Each trial kills a job at one point and starts the same command again: tests/faults/kills.py and
kills_of_files.py say when it is survived. The points are a fixed draw from all that an undisturbed run
passes. A line a matrix; what was not survived is said on stderr, and the status is then 1.
"""

import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from megatron_yuyuan.cli import ArgumentParser, run_command

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from commands import prepare
from faults.kills import EVALUATES, LAYOUTS, RANKS, SAVES, STEPS, Outcome, Trials, drawn, terms
from faults.kills_of_files import FileTrials, Making, exporting, merging, preprocessing
from faults.launched import moments, rank_killed, torchrun_killed

HEAD = "| Kills | Layout | Trials | Survived | Most steps taken again | Minutes |\n|---|---|---:|---:|---:|---:|"


class Matrix(NamedTuple):
    """Trials that are alike."""

    name: str
    """For --only."""
    what: str
    layout: str
    trials: Callable[[Path, Namespace], Iterator[Outcome]]
    """(empty folder, options) -> how each ended."""


def main(args: Sequence[str] | None = None) -> None:
    """Print the table, a line as soon as it is known."""
    parser = ArgumentParser(description=__doc__)
    known = [matrix.name for matrix in matrices()]
    parser.add_argument("--only", nargs="+", choices=sorted(set(known)), default=known)
    parser.add_argument("--trials", type=int, default=25, metavar="N", help="of a row of saves")
    parser.add_argument("--output", metavar="FILE", help="the table is written there too")
    options = parser.parse_args(args)
    lines = [HEAD]
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory(prefix="survival_") as folder:
        options.prepared = prepare(make(Path(folder) / "prepared"))
        faults = 0
        for number, matrix in enumerate(m for m in matrices() if m.name in options.only):
            line, died = row(matrix, make(Path(folder) / str(number)), options)
            faults += died
            lines.append(line)
            print(line, flush=True)
    if options.output:
        Path(options.output).write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(bool(faults))


def make(folder: Path) -> Path:
    """A new folder."""
    folder.mkdir()
    return folder


def row(matrix: Matrix, folder: Path, options: Namespace) -> tuple[str, int]:
    """The line of a matrix, and how many of its trials were not survived."""
    begun, outcomes = time.monotonic(), []
    for outcome in matrix.trials(folder, options):
        outcomes.append(outcome)
        if outcome.fault:
            print(f"{matrix.what}, {matrix.layout}: {outcome.fault}", file=sys.stderr, flush=True)
    died = sum(bool(outcome.fault) for outcome in outcomes)
    survived, minutes = len(outcomes) - died, (time.monotonic() - begun) / 60
    lost = max(outcome.lost for outcome in outcomes)
    cells = (matrix.what, matrix.layout, len(outcomes), survived, lost, f"{minutes:.1f}")
    return f"| {' | '.join(map(str, cells))} |", died


def matrices() -> list[Matrix]:
    """All of them, in the order of the table."""
    found = []
    for layout in LAYOUTS:
        found += [
            Matrix("saves", "kill -9 inside a save", layout, partial(of_saves, layout, ())),
            Matrix("saves", "the same, saved in the background", layout,
                   partial(of_saves, layout, ("--async-save",))),
            Matrix("steps", "kill -9 in a step", layout, partial(of_steps, layout)),
            Matrix("terms", "SIGTERM at six moments", layout, partial(of_terms, layout)),
            Matrix("torchrun", "kill -9 to torchrun", layout, partial(of_torchrun, layout)),
            Matrix("ranks", "kill -9 to a rank, torchrun restarts", layout, partial(of_ranks, layout)),
        ]  # fmt: skip
    return [
        *found,
        Matrix("files", "kill -9 while preprocessing", "1 worker", of_preprocessing),
        Matrix("files", "kill -9 while the shares of two tasks are merged", "", of_merging),
        Matrix("files", "kill -9 in an export to Hugging Face", "", of_exports),
    ]


def of_saves(layout: str, flags: tuple, folder: Path, options: Namespace) -> Iterator[Outcome]:
    trials = Trials(layout, (*SAVES, *flags), options.prepared, folder)
    return map(trials.outcome, drawn(trials.passes, ("save", "retention"), options.trials))


def of_steps(layout: str, folder: Path, options: Namespace) -> Iterator[Outcome]:
    trials = Trials(layout, STEPS, options.prepared, folder)
    return map(trials.outcome, drawn(trials.passes, ("step",), 2 * options.trials))


def of_terms(layout: str, folder: Path, options: Namespace) -> Iterator[Outcome]:
    trials = Trials(layout, EVALUATES, options.prepared, folder)
    return map(trials.outcome, terms(trials.passes))


def of_torchrun(layout: str, folder: Path, options: Namespace) -> Iterator[Outcome]:
    trials = Trials(layout, STEPS, options.prepared, folder)
    for after in moments(3, max(trials.expected)):
        yield torchrun_killed(trials, folder / "launched", after)


def of_ranks(layout: str, folder: Path, options: Namespace) -> Iterator[Outcome]:
    trials = Trials(layout, STEPS, options.prepared, folder)
    for number, after in enumerate(moments(4, max(trials.expected))):
        yield rank_killed(trials, folder / "launched", after, number % RANKS)


def of_preprocessing(folder: Path, options: Namespace) -> Iterator[Outcome]:
    return of_files(preprocessing(options.prepared, folder / "a.jsonl"), folder, 20)


def of_merging(folder: Path, options: Namespace) -> Iterator[Outcome]:
    return of_files(merging(options.prepared, folder / "a.jsonl"), folder, 10)


def of_exports(folder: Path, options: Namespace) -> Iterator[Outcome]:
    return of_files(exporting(folder / "run"), folder, 10)


def of_files(making: Making, folder: Path, number: int) -> Iterator[Outcome]:
    """Kills at so many of the points that a making of files passes."""
    trials = FileTrials(making, folder)
    return map(trials.outcome, drawn(trials.passes, ("scan", "merge", "files", "convert"), number))


if __name__ == "__main__":
    run_command(main)
