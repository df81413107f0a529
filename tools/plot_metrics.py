"""Draw the loss curves of one or more runs from their metrics.jsonl.

    python tools/plot_metrics.py --run pretraining=runs/pretrained --run finetuning=runs/finetuned \\
        --output loss.png

One panel a run: every step's loss, and the validation loss where it was evaluated. Needs the extra
`report` (pip install megatron_yuyuan[report]).
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.errors import ConfigError, DataError
from megatron_yuyuan.log import read_metrics


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, draw. Raises ConfigError (no matplotlib, not a .png) and DataError (no
    run, no steps)."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run", action="append", required=True, metavar="TITLE=DIR", help="a run directory"
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE.png", help="where the picture goes"
    )
    options = parser.parse_args(args)
    if Path(options.output).suffix.lower() != ".png":
        raise ConfigError(
            f"--output {options.output} does not end in .png",
            "the picture is written as PNG",
            f"--output {Path(options.output).with_suffix('.png')}",
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "matplotlib is not installed", "it draws the curves", "pip install matplotlib"
        )
    with AtomicFiles() as files:
        draw([_read(run) for run in options.run], files.open(options.output))
    print(f"written {Path(options.output).absolute()}")


def _read(run: str) -> tuple[str, list[dict], list[dict]]:
    title, _, directory = run.rpartition("=")
    path = Path(directory) / "metrics.jsonl"
    if not path.exists():
        raise DataError(f"no {path}", "it holds the steps of a run", "--run TITLE=SAVE_DIRECTORY")
    steps = read_metrics(path, "step")
    if not steps:
        raise DataError(
            f"{path} holds no step", "there is nothing to draw", "a run that took steps"
        )
    return title or Path(directory).name, steps, read_metrics(path, "evaluation")


def draw(runs: list[tuple[str, list[dict], list[dict]]], output: BinaryIO) -> None:
    """Write the picture as PNG, one panel for each (title, steps, evaluations)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(runs), 3.6), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False)[0]
    for panel, (title, steps, evaluations) in zip(panels, runs, strict=True):
        panel.plot([s["iteration"] for s in steps], [s["lm_loss"] for s in steps],
                   linewidth=0.9, color="tab:blue", label="training")  # fmt: skip
        panel.plot([e["iteration"] for e in evaluations],
                   [e["validation_loss"] for e in evaluations],
                   "o-", markersize=3, color="tab:orange", label="validation")  # fmt: skip
        panel.set(title=title, xlabel="optimizer step", ylabel="loss per learned token (nats)")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(output, format="png", dpi=110)


if __name__ == "__main__":
    run_command(main)
