r"""Which layout of a model over a cluster is fastest, and what it takes. Needs no GPU.

    python tools/plan_parallelism.py --config examples/configs/yuyuan_3.5b.toml --gpu a100-80g --gpus 32 \
        --global-batch-size 512 --tokens 11e9 --chart plan.png

Every layout that works is predicted: memory and time by part, tokens per second, hours and energy.
Nothing is measured; docs/planner.md says how it predicts, and how far off it is for published runs.
The last line is what to give pretrain_gpt.py beside the same configuration. --chart needs the extra
`report` (pip install megatron_yuyuan[report]).
"""

import argparse
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_yuyuan.cli import ArgumentParser, add_config_argument, run_command
from megatron_yuyuan.config import Config, flag_of
from megatron_yuyuan.config_toml import load_toml
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.errors import ConfigError, ConfigErrors
from megatron_yuyuan.planner.clusters import GPUS, RESERVED_GIB, Cluster

if TYPE_CHECKING:  # torch is imported after the command line is read
    from megatron_yuyuan.planner.plan import Plan
    from megatron_yuyuan.planner.search import Search

FORMAT = "megatron_yuyuan plan 1"
MODEL = (
    *("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "vocab_size"),
    *("make_vocab_size_divisible_by", "hidden_dropout", "attention_dropout"),
    *("attention_dropout_rng", "attention_impl", "seq_length", "global_batch_size"),
)
"""Settings that decide what a step computes, and are flags here too."""
GPT2_VOCABULARY = 50257
"""Assumed where no vocabulary is given."""


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, search, print, write. Raises YuyuanError."""
    options = _parse(args)
    given, cluster = _given(options), _cluster(options)
    config = _completed(given)
    from megatron_yuyuan.planner.search import search

    found = search(config, cluster, options.reserve_gib, options.top)
    room = f"{cluster.gpu.memory_gib:g} GiB less {options.reserve_gib:g} reserved"
    if not found.fastest:
        raise ConfigError(
            f"none of {found.tried:,} layouts fits in {room}",
            f"the smallest needs {found.missed / 2**30:.1f} GiB or more",
            "more GPUs, GPUs with more memory, a shorter --seq-length",
        )
    with AtomicFiles() as files:
        if options.json:
            report = _report(found.fastest, options)
            files.open(options.json).write(json.dumps(report, indent=2).encode() + b"\n")
        if options.chart:
            _draw(found.divisions, given, options, files)
    for path in filter(None, (options.json, options.chart)):
        print(f"written {path}")
    print(f"{found.tried:,} layouts work; shown are the fastest that fit in {room}")
    if not given.model.vocab_size:
        print(f"vocabulary: {GPT2_VOCABULARY:,} tokens, as GPT-2's; --vocab-size N for another")
    _print(found, given, options)


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE.toml", help="the model, by table"
    )
    for name in MODEL:
        add_config_argument(parser, name, default=None)
    parser.add_argument("--gpu", choices=GPUS, required=True, help="kind of GPU")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="GPUs of all nodes")
    parser.add_argument(
        "--gpus-per-node",
        type=int,
        default=8,
        metavar="N",
        help="GPUs of a node, joined by NVLink (default: 8)",
    )
    parser.add_argument(
        "--inter-node-bandwidth", type=float, default=0.0, metavar="GB/S",
        help="bandwidth out of a node, in one direction (default: that of NVIDIA's own machine)",
    )  # fmt: skip
    parser.add_argument(
        "--reserve-gib", type=float, default=RESERVED_GIB, metavar="GIB",
        help=f"memory of each GPU that tensors cannot use (default: {RESERVED_GIB:g}, assumed)",
    )  # fmt: skip
    parser.add_argument(
        "--tokens",
        type=float,
        default=1e9,
        metavar="N",
        help="training tokens that hours and energy are given for (default: 1e9)",
    )
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="layouts to show (default: 10)"
    )
    parser.add_argument("--json", metavar="FILE", help="write them there, with every part")
    parser.add_argument(
        "--chart", metavar="FILE.png|.html", help="draw the best of each layout of the GPUs"
    )
    options = parser.parse_args(args)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for values that no search could start with."""
    least = dict.fromkeys(("gpus", "gpus_per_node", "top", "tokens"), 1)
    for name, smallest in (least | {"inter_node_bandwidth": 0, "reserve_gib": 0}).items():
        if not getattr(options, name) >= smallest:  # nan is not
            flag = flag_of(name)
            given = f"{flag} {getattr(options, name)}"
            raise ConfigError(given, "there is nothing to plan", f"{flag} {smallest} or more")
    if options.gpus > options.gpus_per_node and options.gpus % options.gpus_per_node:
        raise ConfigError(
            f"--gpus {options.gpus} on nodes of {options.gpus_per_node}",
            "nodes are taken as equal",
            f"--gpus {options.gpus // options.gpus_per_node * options.gpus_per_node}",
        )
    if options.chart and Path(options.chart).suffix.lower() not in (".png", ".html"):
        raise ConfigError(
            f"--chart {options.chart} ends in neither .png nor .html",
            "it is drawn as one of the two",
            f"--chart {Path(options.chart).with_suffix('.png')}",
        )
    if options.chart and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "matplotlib is not installed", "it draws the chart", "pip install matplotlib"
        )


def _given(options: argparse.Namespace) -> Config:
    """Files, then flags."""
    values: dict = {}
    for path in options.config:
        values |= load_toml(path)
    values |= {n: getattr(options, n) for n in MODEL if getattr(options, n) is not None}
    return Config().replace(**values)


def _completed(given: Config) -> Config:
    """With a vocabulary and positions, in half precision, and as long as any run."""
    training, model = given.training, given.model
    endless = not (training.train_iters or training.train_samples or training.epochs)
    return given.replace(
        vocab_size=model.vocab_size or GPT2_VOCABULARY,
        max_position_embeddings=model.max_position_embeddings or given.data.seq_length,
        bf16=not training.fp16,
        train_iters=1 if endless else training.train_iters,
    )


def _cluster(options: argparse.Namespace) -> Cluster:
    gpu, bandwidth = GPUS[options.gpu], options.inter_node_bandwidth
    return Cluster(gpu, options.gpus, min(options.gpus_per_node, options.gpus), bandwidth)


def _print(found: "Search", given: Config, options: argparse.Namespace) -> None:
    """The fastest plans, the best of each division of the GPUs, the configuration's own; flags of the first."""
    from megatron_yuyuan.introduction import table
    from megatron_yuyuan.planner import page

    top, own = found.fastest, _own(_completed(given), found.fastest[0].cluster)
    room = (top[0].cluster.gpu.memory_gib - options.reserve_gib) * 2**30
    missed = ", which does not fit" if any(plan.memory.total > room for plan in own) else ""
    print(page.heading(top[0]))
    for title, shown in (
        ("the fastest", top),
        ("the fastest of each division of the GPUs", found.divisions[: options.top]),
        (f"as configured{missed}", own),
    ):
        if shown:
            rows = page.ranking(shown, options.tokens)
            rows[0][0] = f"{title} (hours, kWh: for {options.tokens:g} tokens)"
            print("", *table(rows, "  "), sep="\n")
    for rows in (page.memory_by_part(top), page.time_by_part(top)):
        print("", *table(rows, "  "), sep="\n")
    print(f"\nflags for the first:\n  {page.flags(top[0], given)}")


def _own(config: Config, cluster: Cluster) -> "list[Plan]":
    """The layout that files and flags gave, if they gave one and it is valid."""
    from megatron_yuyuan.planner.plan import layout_settings, predict

    if layout_settings(config) == layout_settings(Config()):
        return []
    try:
        return [predict(config, cluster)]
    except ConfigErrors:
        return []


def _report(plans: "Sequence[Plan]", options: argparse.Namespace) -> dict:
    """What --json writes: seconds, bytes and tokens."""
    cluster = plans[0].cluster
    return {
        "format": FORMAT,
        "gpu": options.gpu,
        "gpus": cluster.gpus,
        "gpus_per_node": cluster.gpus_per_node,
        "inter_node_bytes_per_second": cluster.network,
        "tokens": options.tokens,
        "plans": [
            {
                "layout": plan.settings,
                "memory_bytes": vars(plan.memory) | {"total": plan.memory.total},
                "step_seconds": vars(plan.time) | {"total": plan.time.total},
                "tokens_per_second": plan.tokens_per_second,
                "mfu": plan.mfu,
                "hours": plan.hours(options.tokens),
                "kilowatt_hours": plan.kilowatt_hours(options.tokens),
            }
            for plan in plans
        ],
    }


def _draw(
    plans: "Sequence[Plan]", given: Config, options: argparse.Namespace, files: AtomicFiles
) -> None:
    from megatron_yuyuan.planner import page

    shown, output = plans[: options.top], files.open(options.chart)
    if Path(options.chart).suffix.lower() == ".html":
        page.write_page(shown, given, options.tokens, output)
    else:
        page.draw_chart(shown, output)


if __name__ == "__main__":
    run_command(main)
