"""Hold the planner's seconds to published steps: the table of docs/planner.md.

    python tools/benchmark/published_steps.py           # the table, in Markdown
    python tools/benchmark/published_steps.py --fit     # the rates that make the fitted rows exact

No GPU is used, and nothing is measured.
"""

import dataclasses
import statistics
from collections.abc import Sequence

from published_rows import ROWS, Row

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.planner.clusters import GPUS
from megatron_yuyuan.planner.plan import division
from megatron_yuyuan.planner.rates import RATES, Rates
from megatron_yuyuan.planner.step_time import StepTime, predict_step


def main(args: Sequence[str] | None = None) -> None:
    """Print the table, or fit."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="print the fitted rates instead")
    if parser.parse_args(args).fit:
        for architecture in RATES:
            print(architecture, fitted(architecture))
    else:
        print("\n".join(table()))


def error(row: Row) -> float:
    """(predicted - published) / published seconds."""
    return predict_step(row.config, row.cluster).total / row.seconds - 1


def table() -> list[str]:
    """A line of Markdown for each row, then the mean errors."""
    lines = [
        "| model | GPUs | layout | T | published | s | predicted s | error | source |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    sources = list(dict.fromkeys(row.source for row in ROWS))
    for row in ROWS:
        predicted = predict_step(row.config, row.cluster).total
        deviation = f"fitted ({row.fits})" if row.fits else f"{error(row):+.1%}"
        cells = [
            *(row.name, _gpus(row), division(row.config, row.cluster.gpus)),
            *(str(row.config.data.seq_length), row.published, f"{row.seconds:.3f}"),
            *(f"{predicted:.3f}", deviation, str(1 + sources.index(row.source))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *means(), ""]
    return lines + [f"{number}. {source}" for number, source in enumerate(sources, 1)]


def means() -> list[str]:
    """Mean absolute errors over rows that were not fitted."""
    free = [row for row in ROWS if not row.fits]
    steps = [row for row in free if not row.whole_run]
    return [
        f"Mean absolute error over the {len(free)} rows that were not fitted: {_mean(free)}; over the "
        f"{len(steps)} of them that are benchmarks: {_mean(steps)}; over those up to 20 billion "
        f"parameters: {_mean([row for row in steps if row.config.model.num_parameters < 20e9])}."
    ]


def _mean(rows: Sequence[Row]) -> str:
    return f"{statistics.mean(abs(error(row)) for row in rows):.1%}"


def _gpus(row: Row) -> str:
    [name] = [name for name, gpu in GPUS.items() if gpu is row.cluster.gpu]
    return f"{row.cluster.gpus} {name}"


def fitted(architecture: str) -> Rates:
    """The rates that make both fitted rows of an architecture exact."""
    rows = [row for row in ROWS if row.fits and row.cluster.gpu.architecture == architecture]
    used = RATES[architecture]
    try:
        for _ in range(50):  # each row is nearly all of one kind: taking turns converges quickly
            for row in rows:
                rates, time = RATES[architecture], predict_step(row.config, row.cluster)
                exact = {row.fits: _exact(row, rates, time)}
                RATES[architecture] = dataclasses.replace(rates, **exact)
        return RATES[architecture]
    finally:
        RATES[architecture] = used


def _exact(row: Row, rates: Rates, time: StepTime) -> float:
    """The rate of `row.fits` at which its part takes what the other parts leave of the row's time."""
    part = {"matmul": time.matmul, "flash": time.attention}[row.fits]
    return getattr(rates, row.fits) * part / (row.seconds - (time.total - part))


if __name__ == "__main__":
    run_command(main)
