"""What a pipeline rank computes in a step, and in which order: the tables that torch's schedules execute,
without torch.

An action is (kind, number of the stage among the rank's own, micro batch). Kinds: F forward, B backward, or its
two halves, I for the input and W for the weights. Source: torch/distributed/pipelining/schedules.py.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial

Action = tuple[str, int, int]


def actions(schedule: str, ranks: int, virtual: int, micro_batches: int, rank: int) -> list[Action]:
    """What pipeline rank `rank` does in one step, in order. Each of `ranks` ranks has `virtual` stages.
    schedule: of `runs_as`."""
    if schedule == "1F1B":
        return _one_forward_one_backward(min(micro_batches, ranks - rank), micro_batches)
    if schedule in ("GPipe", "LoopedBFS"):
        return _all_forwards_first(schedule, virtual, micro_batches)
    if schedule == "ZBVZeroBubble":
        return _there_and_back(ranks, micro_batches, rank)
    return _interleaved(schedule.endswith("ZeroBubble"), ranks, virtual, micro_batches, rank)


def _one_forward_one_backward(warmup: int, micro_batches: int) -> list[Action]:
    taken = [("F", 0, i) for i in range(warmup)]
    for i in range(micro_batches):
        taken.append(("B", 0, i))
        if i + warmup < micro_batches:
            taken.append(("F", 0, i + warmup))
    return taken


def _all_forwards_first(schedule: str, virtual: int, micro_batches: int) -> list[Action]:
    """GPipe goes backwards in the order of the forwards, LoopedBFS in the opposite one."""
    order = list(range(micro_batches))
    forwards = [("F", stage, i) for stage in range(virtual) for i in order]
    if schedule == "LoopedBFS":
        order.reverse()
    return forwards + [("B", stage, i) for stage in reversed(range(virtual)) for i in order]


def _interleaved(halves: bool, ranks: int, virtual: int, m: int, rank: int) -> list[Action]:
    """Rounds of micro batches through each of the stages in turn. Source: Narayanan et al. 2021,
    arXiv:2104.04473, section 2.2; with halves ZB1P of Qi et al. 2023, arXiv:2401.10241."""
    a_round = m // max(1, m // ranks)
    total, hops = m * virtual, ranks - 1 - rank
    warmup = min((virtual - 1) * a_round + (1 if halves else 2) * hops, total)
    forward, backward, weights = _counted("F"), _counted("I" if halves else "B"), _counted("W")
    stage_of_backward = [virtual - 1 - op // a_round % virtual for op in range(total)]
    taken, weighed = [], 0
    for op in range(total + warmup):
        if op < total:
            taken.append(forward(op // a_round % virtual))
        if op >= warmup:
            taken.append(backward(stage_of_backward[op - warmup]))
            if halves and op - warmup >= rank:
                taken.append(weights(stage_of_backward[weighed]))
                weighed += 1
    return taken + [weights(stage_of_backward[i]) for i in range(weighed, total if halves else 0)]


def _there_and_back(ranks: int, micro_batches: int, rank: int) -> list[Action]:
    """ZB-V: stage 0 on the way there, stage 1 on the way back. Source: arXiv:2401.10241, section 6."""
    m = max(2 * ranks - 1, micro_batches)
    f0, f1, i0, i1, w0, w1 = (partial(_counted(kind), stage) for kind in "FIW" for stage in (0, 1))
    taken = [f0() for _ in range(2 * (ranks - rank) - 1)]
    for _ in range(rank):
        taken += [f1(), f0()]
    for _ in range(ranks - rank):
        taken += [f1(), i1(), w1()]
    begun, returned = 2 * ranks - 1 - rank, ranks
    while returned < begun or begun < m:
        if begun < m:
            taken.append(f0())
            begun += 1
        taken += [i0(), w0(), f1(), i1(), w1()]
        returned += 1
    for _ in range(rank):
        taken += [i0(), i1()]
    for _ in range(ranks - rank):
        taken += [i0(), w0()]
    taken += [w1() for _ in range(rank)] + [w0() for _ in range(rank)]
    return [action for action in taken if action[2] < micro_batches]


def _counted(kind: str) -> Callable[[int], Action]:
    """Makes actions of a kind, each with the next micro batch of its stage."""
    done: Counter[int] = Counter()

    def action(stage: int) -> Action:
        done[stage] += 1
        return kind, stage, done[stage] - 1

    return action
