"""A loss or gradient that is not finite: the part of the model, and the rank, where it begins."""

import math

import pytest
import torch.distributed as dist
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.errors import DataError


def spoil(trainer, what: str, name: str) -> None:
    """Of a module, on the last of the ranks that hold it: its weight, its outputs, the first of them alone, or
    the gradient for them, under a loss that stays as it is."""
    module = dict(trainer.state.stages[-1].named_modules()).get(name)
    holders: list = [None] * dist.get_world_size()
    dist.all_gather_object(holders, module is not None)
    if module is None or any(holders[dist.get_rank() + 1 :]):
        return

    def outputs(_module, _inputs, output):
        if what == "first output":
            handle.remove()
        return output[0] * math.nan, *output[1:]

    def gradients(_module, _inputs, output):
        output[0].register_hook(lambda gradient: gradient * math.inf)

    if what == "weight":
        module.weight.detach().to_local().fill_(math.nan)
    else:
        handle = module.register_forward_hook(gradients if what == "gradient" else outputs)


def hooks(trainer) -> int:
    return sum(len(m._forward_hooks) for stage in trainer.state.stages for m in stage.modules())


def refusal(config, what: str, name: str) -> str:
    """What every rank is refused with, the same on all; the search leaves no hook behind."""
    trainer = build_trainer(config)
    spoil(trainer, what, name)
    before = hooks(trainer)
    with pytest.raises(DataError) as refused:
        trainer.step(RandomText())
    assert hooks(trainer) <= before
    heard: list = [None] * dist.get_world_size()
    dist.all_gather_object(heard, refused.value.what)
    assert len(set(heard)) == 1
    return heard[0]


DP2, PP2, TP2 = Layout(data=2), Layout(pipeline=2), Layout(tensor=2)
BEGINS = [
    (Layout(), "weight", 3, "first in the output of h.3.mlp.c_fc, on rank 0 ("),
    (PP2, "weight", 5, "first in the output of h.5.mlp.c_fc, on rank 1 ("),
    (TP2, "weight", 3, "first in the output of h.3.mlp.c_fc, on rank 1 ("),
    (DP2, "weight", 3, ") and 1 more"),  # both gather it
    (DP2, "output", 3, "first in the output of h.3.mlp.c_fc, on rank 1 ("),
    (DP2, "first output", 3, "in no output that could be found"),
    (Layout(), "gradient", 3, "first in the gradient of h.3.mlp.c_fc.weight, held by rank 0 ("),
    (PP2, "gradient", 5, "first in the gradient of h.5.mlp.c_fc.weight, held by rank 1 ("),
    (PP2, "gradient", 1, "first in the gradient of h.1.mlp.c_fc.weight, held by rank 0 ("),
    (DP2, "gradient", 3, "first in the gradient of h.3.mlp.c_fc.weight, held by rank "),
    (TP2, "gradient", 3, "first in the gradient of h.3.mlp.c_fc.weight, held by rank 1 ("),
]


@pytest.mark.parametrize(
    ("layout", "what", "layer", "where"),
    BEGINS,
    ids=[f"{case[0]}-{case[1]}-{case[2]}" for case in BEGINS],
)
def test_the_part_where_it_begins_and_the_rank_are_named(ranks, layout, what, layer, where):
    said = ranks.run(layout.ranks, refusal, layout.of(TINY), what, f"h.{layer}.mlp.c_fc")
    assert said.startswith("iteration 1: loss ")
    assert f", on samples 0 to 7, {where}" in said or said.endswith(where)
