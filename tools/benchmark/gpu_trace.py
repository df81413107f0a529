"""What a GPU did during recorded steps: the share of the time of each kind of kernel, and of none."""

import gzip
import json
from pathlib import Path

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


def shares(trace: Path) -> dict[str, float]:
    """Kind of kernel -> its share of the time from the first kernel to the end of the last, `idle`
    included. Kernels that run at the same time share it by their order: the later counts from the end
    of the earlier. Raises ValueError for a trace without a kernel."""
    spans = sorted(
        (event["ts"], event["ts"] + event["dur"], kind_of(event["name"]))
        for event in read_events(trace)
        if event.get("ph") == "X" and event.get("cat") in ON_THE_GPU
    )
    if not spans:
        raise ValueError("no kernel of a GPU in the trace")
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


def read_events(trace: Path) -> list[dict]:
    """The events of a Chrome trace, compressed or not."""
    opened = gzip.open if trace.suffix == ".gz" else open
    with opened(trace, "rt", encoding="utf-8") as file:
        return json.load(file)["traceEvents"]
