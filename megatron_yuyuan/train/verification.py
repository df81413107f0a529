"""Silent data corruption: processors, memory and links that compute or carry wrong bits and report nothing.

A step computed again from the same weights and samples must give the same bits, and what several ranks hold
must have the same bits on all of them. An error that comes back each time is seen by the second alone.

Sources: Dixit et al. 2021, arXiv:2102.11245; the second computation is Megatron-LM's,
megatron/core/rerun_state_machine.py.
"""

import hashlib
import math
import platform
from collections import Counter
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from megatron_yuyuan.data.loader import Dataset
from megatron_yuyuan.errors import MachineError
from megatron_yuyuan.kernels.adamw import local
from megatron_yuyuan.launcher import order_sums_of_cublas
from megatron_yuyuan.parallel.gathering import all_gather_object
from megatron_yuyuan.train.state import TrainState, named_parameters


class Computes(Protocol):
    """A trainer, as far as a step is verified."""

    state: TrainState
    own_loss: Tensor
    """() this rank's part of the loss, before any sum over ranks."""

    def gradients(self, dataset: Dataset) -> tuple[float, float]:
        """Leave the gradient of the next batch in the parameters."""
        ...


class Computed(NamedTuple):
    """What a rank has computed, as text, so that equal means equal bits."""

    loss: str
    gradients: str


def make_deterministic(device: torch.device) -> None:
    """Make CUDA deterministic, before the first product. An operator without a deterministic form then
    raises: with warn_only attention's backward would keep its nondeterministic sums, although it has a
    deterministic form."""
    if device.type == "cuda":
        order_sums_of_cublas()
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def verify_step(trainer: Computes, dataset: Dataset) -> None:
    """Compute the gradients that a trainer holds once more, and compare: this rank's part of the loss, and
    its own gradients, every bit. Where they differ, a third time, to tell a machine from a program.

    Every rank calls it, and it raises MachineError on all of them alike. An error before the gradients
    were summed shows on every rank of that sum: if it has changed the loss, that names its ranks.
    """
    first = all_gather_object(_computed(trainer))
    trainer.gradients(dataset)
    second = all_gather_object(_computed(trainer))
    if first == second:
        return
    trainer.gradients(dataset)
    third = all_gather_object(_computed(trainer))
    pairs = list(enumerate(zip(first, second, strict=True)))
    ranks = [rank for rank, (a, b) in pairs if a.loss != b.loss]
    ranks = ranks or [rank for rank, (a, b) in pairs if a.gradients != b.gradients]
    hosts = _hosts()
    if third in (first, second):
        again = "first" if third == first else "second"
        why = f"the same weights and samples gave other bits, once: the third time they were those of the {again}"
    else:
        why = (
            "three computations gave three results: a machine that fails often, or, if other machines do the "
            "same, kernels whose sums have no fixed order"
        )
    raise MachineError(
        f"iteration {trainer.state.iteration + 1} computed again differs on {_named(ranks, hosts)}",
        why,
        f"{_without(ranks, hosts)}; no update was made",
        _culprit(ranks, hosts),
    )


def require_same_copies(state: TrainState) -> None:
    """Compare every part of a parameter or moment that several ranks hold: over the data ranks under
    no_shard, over the instances of hybrid sharding, over the tensor ranks what these do not divide, and the
    two copies of the embedding. Costs what hashing these takes.

    Every rank calls it. Raises MachineError on all of them, naming the rank: that of the minority where
    there are three copies or more; of two copies both.
    """
    mine = {part: _digest([tensor]) for part, tensor in _repeated(state).items()}
    held = all_gather_object(mine)
    suspects: Counter[int] = Counter()
    unequal = []
    for part in sorted(set().union(*held)):
        copies = {rank: parts[part] for rank, parts in enumerate(held) if part in parts}
        if odd := _minority(copies):
            suspects.update(odd)
            unequal.append((part, len(copies)))
    if not unequal:
        return
    ranks, hosts = sorted(suspects), _hosts()
    (part, held_by), more = unequal[0], len(unequal) - 1
    have = "has" if len(ranks) == 1 else "have"
    raise MachineError(
        f"after iteration {state.iteration} {_named(ranks, hosts)} "
        f"{'disagree on' if held_by == 2 else f'{have} other bits than the others in'} {part.split(' ')[0]}"
        f"{f' and {more} more' if more else ''}",
        f"it lies on {held_by} ranks and must be the same on each"
        f"{'; two copies do not tell which is wrong' if held_by == 2 else ''}",
        f"{_without(ranks, hosts)}; it was not saved; the previous checkpoint is intact",
        _culprit(ranks, hosts),
    )


def _computed(trainer: Computes) -> Computed:
    gradients = [p.grad for _, p in named_parameters(trainer.state.stages) if p.grad is not None]
    return Computed(float(trainer.own_loss).hex(), _digest(gradients))


def _repeated(state: TrainState) -> dict[str, Tensor]:
    """What this rank holds and another one too: {name and place of the part: tensor}."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.tensors().items():
        assert isinstance(tensor, DTensor)  # as every part of a checkpoint
        mesh = tensor.device_mesh
        axes = [i for i, placement in enumerate(tensor.placements) if placement.is_replicate()]
        copies = math.prod(mesh.size(i) for i in axes)
        tied = name.endswith(".wte.weight") and state.mesh.tied_group is not None
        if copies > 1 or tied:
            place = [mesh.get_local_rank(i) for i in range(mesh.ndim) if i not in axes]
            found[f"{name} {place}"] = tensor
    return found


def _digest(tensors: list[Tensor]) -> str:
    """sha256 of the bytes that this rank holds of tensors."""
    whole = hashlib.sha256()
    for tensor in tensors:
        held = local(tensor).detach().contiguous().cpu()
        whole.update(held.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _minority(copies: dict[int, str]) -> list[int]:
    """Ranks whose copy is not that of more than half of them; all, where no copy is; none, where all are
    equal."""
    [(commonest, count), *others] = Counter(copies.values()).most_common()
    if not others:
        return []
    return [rank for rank, copy in copies.items() if copy != commonest or 2 * count <= len(copies)]


def _hosts() -> list[str]:
    """Every rank's host."""
    return all_gather_object(platform.node())


def _named(ranks: list[int], hosts: list[str]) -> str:
    """`rank 1 (node7), rank 2 (node8)`."""
    return ", ".join(f"rank {rank} ({hosts[rank]})" for rank in ranks)


def _without(ranks: list[int], hosts: list[str]) -> str:
    names = ",".join(sorted({hosts[rank] for rank in ranks}))
    return f"the same command again without {names} (SLURM: --exclude={names}), and have it tested"


def _culprit(ranks: list[int], hosts: list[str]) -> dict:
    """What exit.json says of it: the first of them."""
    return {"rank": ranks[0], "host": hosts[ranks[0]]}
