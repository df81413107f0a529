"""When each rank of a pipeline computed what, from the traces of --profile.

A trace is Chrome's trace event format; the actions of a schedule have the names that
parallel/pipeline.NamedStage gives them. On CUDA an action is the time of the kernels that were launched
within it, on whichever thread: the main one waits while autograd's launches a backward. (The names that the
profiler itself copies to the device are not complete: there is one for every stream that the main thread
launched on, and none of a backward.)
"""

import gzip
import json
import re
import zlib
from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from megatron_yuyuan.config import Config
from megatron_yuyuan.parallel.stages import bubble_fraction, runs_as
from megatron_yuyuan.report.record import unreadable

ACTION = re.compile(r"stage (\d+) (forward|backward|weights) (\d+)")
LAUNCHES = ("cuda_runtime", "cuda_driver")


@dataclass(frozen=True)
class Action:
    """One piece of work of a rank."""

    kind: str
    """forward, backward (with zero bubble that of the inputs), or weights."""
    stage: int
    micro_batch: int
    start: int
    end: int
    """Nanoseconds since the step's first action on any rank."""


Timeline = dict[int, list[Action]]
"""Global rank -> its actions of one step, in order."""


def read_timeline(directory: Path, config: Config) -> Timeline:
    """The last step that every trace of SAVE/profile holds, of one rank for each pipeline rank (the first
    that wrote a trace). Empty without traces, and of one stage. Raises DataError: a damaged trace."""
    paths = {int(path.name[5:-8]): path for path in directory.glob("profile/rank_*.json.gz")}
    if config.parallel.pipeline_model_parallel_size == 1 or not paths:
        return {}
    steps = {rank: _steps(path) for rank, path in sorted(paths.items())}
    steps = {rank: taken for rank, taken in steps.items() if taken}
    chosen: dict[frozenset, int] = {}
    """The stages of a pipeline rank -> the first rank that has them."""
    for rank, taken in steps.items():
        chosen.setdefault(frozenset(action.stage for action in taken[-1]), rank)
    last = min((len(steps[rank]) for rank in chosen.values()), default=0) - 1
    return _from_the_first({rank: steps[rank][last] for rank in sorted(chosen.values())})


def _steps(path: Path) -> list[list[Action]]:
    """The actions of each step in a trace, by the machine's clock."""
    try:
        trace = json.loads(gzip.decompress(path.read_bytes()))
        events, base = trace["traceEvents"], trace.get("baseTimeNanoseconds", 0)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise unreadable(path, str(error) or type(error).__name__) from None
    named = [e for e in events if ACTION.fullmatch(str(e.get("name", "")))]
    kernels = _kernels_by_launch(events)
    seen: dict[tuple, int] = defaultdict(int)
    steps: dict[int, list[Action]] = defaultdict(list)
    for event in sorted((e for e in named if e.get("cat") == "user_annotation"), key=_begins):
        _, stage, kind, micro_batch = event["name"].split()
        number = seen[kind, stage, micro_batch]
        seen[kind, stage, micro_batch] += 1
        inside = slice(
            bisect_left(kernels, event["ts"], key=_launched),
            bisect_right(kernels, _ends(event), key=_launched),
        )
        computing = [kernel for _, kernel in kernels[inside]] or [event]
        start, end = min(map(_begins, computing)), max(map(_ends, computing))
        start, end = base + round(1000 * start), base + round(1000 * end)  # from microseconds
        steps[number].append(Action(kind, int(stage), int(micro_batch), start, end))
    return [steps[number] for number in sorted(steps)]


def _kernels_by_launch(events: list[dict]) -> list[tuple[float, dict]]:
    """(when it was launched, its event) of every kernel that computes, in this order; none of a trace of the
    CPU. Those of NCCL wait for other ranks."""
    kernels = {
        _correlation(event): event
        for event in events
        if event.get("cat") == "kernel" and "nccl" not in event["name"].lower()
    }
    launches = [e for e in events if e.get("cat") in LAUNCHES and _correlation(e) in kernels]
    return sorted(((e["ts"], kernels[_correlation(e)]) for e in launches), key=_launched)


def _correlation(event: dict) -> int | None:
    """What a kernel has in common with its launch."""
    return event.get("args", {}).get("correlation")


def _launched(launch: tuple[float, dict]) -> float:
    return launch[0]


def _begins(event: dict) -> float:
    return event["ts"]


def _ends(event: dict) -> float:
    return event["ts"] + event["dur"]


def _from_the_first(timeline: Timeline) -> Timeline:
    """The same, counted from the first action."""
    begun = min((a.start for actions in timeline.values() for a in actions), default=0)
    return {
        rank: [
            Action(a.kind, a.stage, a.micro_batch, a.start - begun, a.end - begun) for a in actions
        ]
        for rank, actions in timeline.items()
    }


def length(timeline: Timeline) -> int:
    """Nanoseconds from the first action to the end of the last."""
    return max(action.end for actions in timeline.values() for action in actions)


def measured_bubble(timeline: Timeline) -> float:
    """Share of the time, over the ranks, in which none of a rank's actions ran."""
    busy = sum(a.end - a.start for actions in timeline.values() for a in actions)
    return 1 - busy / (length(timeline) * len(timeline))


def theoretical_bubble(timeline: Timeline, config: Config) -> tuple[str, Fraction]:
    """(schedule that ran, its idle share if stages are equal and a backward takes two forwards)."""
    parallel = config.parallel
    micro_batches = 1 + max(a.micro_batch for actions in timeline.values() for a in actions)
    schedule = runs_as(parallel, micro_batches)
    ranks, virtual = parallel.pipeline_model_parallel_size, parallel.stages_per_rank
    return schedule, bubble_fraction(schedule, ranks, virtual, micro_batches)
