"""When each rank of a pipeline computed what, from the traces of --profile.

A trace is Chrome's trace event format; the actions of a schedule have the names that
parallel/pipeline.NamedStage gives them. On CUDA the trace also has the same names on the device
(`gpu_user_annotation`), which say when the kernels ran; without them the host's count.
"""

import gzip
import json
import re
import zlib
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from megatron_yuyuan.config import Config
from megatron_yuyuan.parallel.stages import bubble_fraction, runs_as
from megatron_yuyuan.report.record import unreadable

ACTION = re.compile(r"stage (\d+) (forward|backward|weights) (\d+)")
ON_DEVICE, ON_HOST = "gpu_user_annotation", "user_annotation"


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
    named = [event for event in events if ACTION.fullmatch(str(event.get("name", "")))]
    device = [event for event in named if event.get("cat") == ON_DEVICE]
    host = [event for event in named if event.get("cat") == ON_HOST]
    seen: dict[tuple, int] = defaultdict(int)
    steps: dict[int, list[Action]] = defaultdict(list)
    for event in sorted(device or host, key=lambda event: event["ts"]):
        _, stage, kind, micro_batch = event["name"].split()
        start, number = base + round(1000 * event["ts"]), seen[kind, stage, micro_batch]
        seen[kind, stage, micro_batch] += 1
        end = start + round(1000 * event["dur"])  # ts and dur are microseconds
        steps[number].append(Action(kind, int(stage), int(micro_batch), start, end))
    return [steps[number] for number in sorted(steps)]


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
