"""Evaluation and generation pass through the stages of any schedule, whatever B and T."""

import pytest
import torch
from tiny import TINY, Layout
from torch import Tensor

from megatron_yuyuan.evaluate.generate import generate
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.parallel.forward import DividedModel
from megatron_yuyuan.parallel.plan import build_stages

PROMPT, NEVER = [3, 14, 15, 9, 2], -1


def divided(config) -> DividedModel:
    mesh = mesh_module.start(config.parallel)
    return DividedModel(build_stages(config, mesh), mesh, config)


def undivided() -> GPT2:
    model = GPT2(TINY.model)
    init_weights(model, TINY.training.seed)
    return model.eval()


def model_inputs(tokens: Tensor) -> dict:
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return {"positions": positions, "sample_ids": torch.arange(len(tokens)), "step": 0}


def logits(config, shapes) -> list[Tensor]:
    model = divided(config)
    batches = [torch.arange(b * t).view(b, t) for b, t in shapes]
    return [model(tokens, **model_inputs(tokens)) for tokens in batches]


def generated(config) -> list[list[int]]:
    model = divided(config)
    return [
        generate(model, PROMPT, 8, eod=NEVER, use_cache=cache, **sampling)
        for cache in (True, False)
        for sampling in ({}, {"temperature": 1.0, "seed": 3})
    ]


CASES = [
    (Layout(pipeline=4), "1F1B"),
    (Layout(pipeline=2, tensor=2), "Interleaved1F1B"),
    (Layout(pipeline=2, data=2), "ZBVZeroBubble"),
]


@pytest.mark.parametrize(("layout", "schedule"), CASES, ids=str)
def test_logits_of_any_shape_are_those_of_the_undivided_model(ranks, layout, schedule):
    config = layout.of(TINY).replace(pipeline_schedule=schedule)
    shapes = [(1, 7), (3, 1), (2, 16)]
    for (b, t), found in zip(shapes, ranks.run(4, logits, config, shapes), strict=True):
        tokens = torch.arange(b * t).view(b, t)
        with torch.no_grad():
            expected = undivided()(tokens, **model_inputs(tokens))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layout", "schedule"), CASES, ids=str)
def test_every_layout_generates_the_same_ids(ranks, layout, schedule):
    config = layout.of(TINY).replace(pipeline_schedule=schedule)
    greedy, sampled = (
        generate(undivided(), PROMPT, 8, eod=NEVER, **sampling)
        for sampling in ({}, {"temperature": 1.0, "seed": 3})
    )
    assert ranks.run(4, generated, config) == [greedy, sampled, greedy, sampled]
    assert greedy != sampled
