"""LoRA computes no gradient of a frozen matrix: its products are counted, to the last one."""

import pytest
import torch
from tiny import TINY, Layout, RandomText, build_trainer
from torch.utils.flop_counter import FlopCounterMode

CONFIG = TINY.replace(num_layers=4, lora_rank=3)
C, F, L, R, V = 32, 128, 4, 3, 128
TOKENS = 8 * 16
SHAPES = {
    "attn.c_attn": (3 * C, C),
    "attn.c_proj": (C, C),
    "mlp.c_fc": (F, C),
    "mlp.c_proj": (C, F),
}
ATEN = torch.ops.aten


def addmm_flops(_, a, b, **others) -> int:
    """Of shapes, as the counter knows those of addmm."""
    return 2 * a[0] * a[1] * b[1]


def counted(config) -> int:
    """Operations of the products with weights on rank 0, forward and backward of a step."""
    trainer = build_trainer(config)
    counter = FlopCounterMode(display=False, custom_mapping={ATEN.addmm_: addmm_flops})
    with counter:
        trainer.gradients(RandomText())
    by_operator = counter.get_flop_counts()["Global"]
    return sum(by_operator.get(operator, 0) for operator in (ATEN.mm, ATEN.addmm, ATEN.addmm_))


def test_all_weights_learned_is_three_times_the_forward(ranks):
    """The counter sees the products of every kind; the first block's input is learned through, too."""
    forward = 2 * TOKENS * (L * sum(a * b for a, b in SHAPES.values()) + V * C)
    assert ranks.run(1, counted, CONFIG.replace(lora_rank=0)) == 3 * forward


def test_nothing_frozen_has_a_gradient(ranks):
    """Frozen: forward and the input's gradient, which the first c_attn has none of. Factors: all three."""
    frozen = L * sum(a * b for a, b in SHAPES.values()) + V * C
    factors = L * R * sum(a + b for a, b in SHAPES.values())
    first = 3 * C * C + R * C  # the gradient of what is no function of anything learned
    found = ranks.run(1, counted, CONFIG)
    assert found == 2 * TOKENS * (2 * frozen + 3 * factors - first)


@pytest.mark.parametrize("layout", [Layout(1, 1, 2), Layout(1, 1, 2, True)], ids=str)
def test_nor_does_what_tensor_ranks_share(ranks, layout):
    """Factors beside attn.c_proj alone: c_attn and mlp.c_fc are column-parallel, frozen and without any."""
    config = layout.of(CONFIG.replace(lora_target_modules=("attn.c_proj",)))
    frozen = (L * sum(a * b for a, b in SHAPES.values()) + V * C) // 2
    a, b = L * R * C // 2, L * R * C // (2 if layout.sequence_parallel else 1)
    first = (3 * C * C + C * C + R * C) // 2
    found = ranks.run(2, counted, config)
    assert found == 2 * TOKENS * (2 * frozen + 3 * (a + b) - first)
