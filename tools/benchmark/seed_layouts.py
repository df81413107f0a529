"""The best layouts for the two runs of the seeds: the tables at the end of docs/planner.md.

    python tools/benchmark/seed_layouts.py

Predicted, as tools/plan_parallelism.py predicts; no GPU is used.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, parse_config, run_command
from megatron_yuyuan.config_toml import load_toml
from megatron_yuyuan.planner.clusters import GPUS, Cluster
from megatron_yuyuan.planner.page import flags, ranking
from megatron_yuyuan.planner.plan import LAYOUT, predict
from megatron_yuyuan.planner.search import search

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
RUNS = (
    (32, "yuyuan_3.5b_32xA100.toml", 1024, 11_010_000_000),
    (16, "yuyuan_qa_16xA100.toml", 16, 117_391_360),
)
"""GPUs, recipe, samples of a step, tokens that hours and energy are for."""
SHOWN = 3
"""Divisions of the GPUs; the recipe's own comes after them."""


def main(args: Sequence[str] | None = None) -> None:
    """Print both tables, in Markdown."""
    ArgumentParser(description=__doc__).parse_args(args)
    for run in RUNS:
        print("\n".join(table(*run)), end="\n\n")


def table(gpus: int, recipe: str, samples: int, tokens: int) -> Iterator[str]:
    """A line for each layout on A100 of 80 and of 40 GB."""
    shape = ["--config", str(CONFIGS / "yuyuan_3.5b.toml"), "--bf16", "--train-iters", "1"]
    given = parse_config("", [*shape, "--global-batch-size", str(samples)])
    chosen = load_toml(CONFIGS / recipe)
    own = given.replace(**{name: value for name, value in chosen.items() if name in LAYOUT})
    yield "| GPUs | layout | GiB | s/step | tokens/s | MFU | hours | kWh |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in ("a100-80g", "a100-40g"):
        cluster = Cluster(GPUS[name], gpus)
        plans = search(given, cluster, top=1).divisions[:SHOWN]
        if own not in [plan.config for plan in plans]:
            plans.append(predict(own, cluster))
        for plan, (_, *figures) in zip(plans, ranking(plans, tokens)[1:], strict=True):
            layout = flags(plan, given)
            layout = f"`{layout}`" if layout.startswith("--") else "none"
            yield f"| {gpus} {name} | {layout} | {' | '.join(figures)} |"


if __name__ == "__main__":
    run_command(main)
