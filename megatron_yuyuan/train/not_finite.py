"""Where a loss or gradient that is not finite comes from: which part of the model, on which ranks. Every rank
asks, and only when the run ends by it, so that no other step pays for it."""

import platform
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from megatron_yuyuan.kernels.adamw import local, local_gradient
from megatron_yuyuan.parallel.gathering import all_gather_object

Place = tuple[int, int, str]
"""Number of a stage, number of a part in it, the part's name: they sort as the forward passes them."""
TIED = "wte.weight"


def first_output(stages: Mapping[int, nn.Module], compute: Callable[[], object]) -> str:
    """`first in the output of h.1.mlp.c_fc, on rank 1 (node7)`: of the modules whose output is not finite the
    one that the forward passes first. A LayerNorm inside of a block shows in the module after it.

    stages: this rank's, by their numbers. compute: takes the forward of the same step once more.
    """
    seen: list[Place] = []

    def look(place: Place, _module: nn.Module, _inputs: tuple, output: object) -> None:
        values = output if isinstance(output, tuple) else (output,)
        if not seen and not all(_is_finite(x) for x in values if isinstance(x, Tensor)):
            seen.append(place)

    hooks = [
        module.register_forward_hook(partial(look, (stage, number, name)))
        for stage, model in stages.items()
        for number, (name, module) in enumerate(model.named_modules())
    ]
    try:
        compute()
    finally:
        for hook in hooks:
            hook.remove()
    return _named("output", "on", seen, min)


def first_gradient(stages: Mapping[int, nn.Module]) -> str:
    """`first in the gradient of h.3.mlp.c_fc.weight, held by rank 0 (node7)`: the backward goes from the end to
    the front, so it is the last of the model that is named. Who holds it need not be the data rank that made
    it: their gradients are summed. The embedding is the last that the backward reaches, its tied copy too.
    """
    places = [
        (0 if name == TIED else stage, number, name)
        for stage, model in stages.items()
        for number, (name, parameter) in enumerate(model.named_parameters())
        if parameter.grad is not None and not _is_finite(_norms(parameter))
    ]
    return _named("gradient", "held by", places, max)


def _is_finite(x: Tensor) -> bool:
    return bool(torch.isfinite(local(x)).all())


def _norms(parameter: Tensor) -> Tensor:
    """Of the rows of this rank's gradient: as `AdamW.squared_norm` adds them up."""
    return torch.linalg.vector_norm(local_gradient(parameter), dim=-1)


def _named(what: str, by: str, mine: list[Place], first: Callable[[list[Place]], Place]) -> str:
    """The first place of all ranks, and who has it. A collective."""
    everyone = all_gather_object((platform.node(), first(mine) if mine else None))
    places = [place for _, place in everyone if place]
    if not places:
        return f"in no {what} that could be found"
    (_, _, name) = place = first(places)
    (rank, host), *others = [(r, h) for r, (h, found) in enumerate(everyone) if found == place]
    more = f" and {len(others)} more" if others else ""
    return f"first in the {what} of {name}, {by} rank {rank} ({host}){more}"
