r"""What a GPU did during recorded steps: the share of the time of each kind of kernel, and of none; and how much
of what the ranks exchange is hidden behind computing.

    torchrun --nproc-per-node 8 pretrain_gpt.py ... --profile
    python tools/benchmark/gpu_trace.py SAVE/profile/rank_00.json.gz [...]

Ends with status 1 where gradients are reduced, or parameters gathered, over the data axis with nothing beside it. An
axis of all ranks has their group, `default_pg`, which is judged with --data-parallel-only.
"""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.errors import DataError

KINDS = {
    "communication": ("nccl", "allreduce", "all_gather", "reduce_scatter"),
    "attention": ("flash", "fmha", "sdpa", "softmax"),
    "optimizer": ("adam", "multi_tensor_apply", "squared_norm"),
    "matmul": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk"),
}
"""Kind -> parts of kernels' names, lower case. The first kind that fits counts (flash attention is built
from cutlass); what fits none is pointwise."""
ON_THE_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}
"""Categories of events in torch's traces."""
COLLECTIVES = {
    "reducescatter": "reduce-scatter",
    "allgather": "all-gather",
    "allreduce": "all-reduce",
}
"""Part of the name of an NCCL kernel, lower case and without underscores -> collective."""
OF_DATA = ("mesh_shard", "mesh_replica", "mesh_data")
"""Descriptions of the process groups of FSDP2's exchanges: torch names a group after its axis of the mesh."""
ALL_RANKS = ("all-gather over default_pg", "reduce-scatter over default_pg")
"""FSDP2's over an axis of all ranks; what else they exchange is all-reduced."""
HIDDEN = 0.5
"""The least share of an exchange over the data axis that is to run beside computing. The first gathering of a
forward and the last reduction of a backward have nothing beside them."""
Span = tuple[float, float]
"""Begin and end, microseconds."""


def main(args: Sequence[str] | None = None) -> None:
    """Print what each trace shows."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("traces", type=Path, nargs="+", metavar="TRACE")
    parser.add_argument(
        "--data-parallel-only", action="store_true", help="all ranks are one data axis"
    )
    options, exposed = parser.parse_args(args), []
    of_data = (*OF_DATA, *(ALL_RANKS if options.data_parallel_only else ()))
    for path in options.traces:
        if not path.exists():
            raise DataError(
                f"no trace {path}", "there is no such file", "SAVE/profile/rank_00.json.gz"
            )
        parts = ", ".join(f"{kind} {part:.1%}" for kind, part in shares(path).items())
        print(f"{path}: {parts}")
        for exchange, found in overlap(path).items():
            print(f"  {exchange}: {found['seconds']:.4f} s, {found['hidden']:.0%} beside computing")
            if exchange.endswith(of_data) and found["hidden"] < HIDDEN:
                exposed.append(f"{path}: {exchange}")
    if exposed:
        raise SystemExit(f"less than {HIDDEN:.0%} beside computing:\n" + "\n".join(exposed))


def shares(trace: Path) -> dict[str, float]:
    """Kind of kernel -> its share of the time from the first kernel to the end of the last, `idle`
    included. Kernels that run at the same time share it by their order: the later counts from the end
    of the earlier. Raises DataError for a trace without a kernel."""
    spans = sorted((*span(event), kind_of(event["name"])) for event in read_kernels(trace))
    taken = dict.fromkeys([*KINDS, "pointwise"], 0.0)
    first, covered = spans[0][0], spans[0][0]
    for begin, end, kind in spans:
        taken[kind] += max(0.0, end - max(begin, covered))
        covered = max(covered, end)
    whole = covered - first
    busy = sum(taken.values())
    return {kind: time / whole for kind, time in taken.items()} | {"idle": 1 - busy / whole}


def kind_of(kernel: str) -> str:
    """matmul, attention, optimizer, communication or pointwise."""
    name = kernel.lower()
    return next((k for k, parts in KINDS.items() if any(p in name for p in parts)), "pointwise")


def overlap(trace: Path) -> dict[str, dict[str, float]]:
    """`all-gather over mesh_shard` -> its seconds, and the share of them in which this GPU computes as
    well. Without NCCL's own note of a kernel's group it is `... over a group without a name`."""
    exchanges: dict[str, list[Span]] = {}
    computing: list[Span] = []
    for event in read_kernels(trace):
        if kind_of(event["name"]) != "communication":
            computing.append(span(event))
            continue
        group = event.get("args", {}).get("Process Group Description", "a group without a name")
        exchanges.setdefault(f"{collective(event['name'])} over {group}", []).append(span(event))
    beside = joined(computing)
    found = {}
    for exchange, spans in exchanges.items():
        spans = joined(spans)
        whole = sum(end - begin for begin, end in spans)
        found[exchange] = {"seconds": whole / 1e6, "hidden": common(spans, beside) / whole}
    return found


def joined(spans: list[Span]) -> list[Span]:
    """The same time in spans that are in order and apart."""
    apart: list[Span] = []
    for begin, end in sorted(spans):
        if apart and begin <= apart[-1][1]:
            apart[-1] = apart[-1][0], max(end, apart[-1][1])
        else:
            apart.append((begin, end))
    return apart


def common(a: list[Span], b: list[Span]) -> float:
    """The time that lies in both, of spans as `joined` returns them."""
    total, i, j = 0.0, 0, 0
    while i < len(a) and j < len(b):
        total += max(0.0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0]))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return total


def collective(kernel: str) -> str:
    """reduce-scatter, all-gather, all-reduce, or `exchange` for another."""
    name = kernel.lower().replace("_", "")
    return next((word for part, word in COLLECTIVES.items() if part in name), "exchange")


def span(event: dict) -> Span:
    """When an event begins and ends."""
    return event["ts"], event["ts"] + event["dur"]


def read_kernels(trace: Path) -> list[dict]:
    """What ran on the GPU, of a Chrome trace, compressed or not. Raises DataError for a trace without a
    kernel."""
    opened = gzip.open if trace.suffix == ".gz" else open
    with opened(trace, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    kernels = [e for e in events if e.get("ph") == "X" and e.get("cat") in ON_THE_GPU]
    if not kernels:
        raise DataError(
            f"no kernel of a GPU in {trace}",
            "its steps were taken on a CPU, or the profiler could not record the GPU",
            "a trace of --profile on CUDA",
        )
    return kernels


if __name__ == "__main__":
    run_command(main)
