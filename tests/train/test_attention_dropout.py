"""Attention dropout by torch's own generator: the same run resumed, and another on another layout."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from portions import in_portions
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.errors import ConfigErrors
from megatron_yuyuan.introduction import introduce_plan
from megatron_yuyuan.kernels import Kernels
from megatron_yuyuan.log import Log
from megatron_yuyuan.model.gpt2 import GPT2, Attention, BlockInputs
from megatron_yuyuan.model.initialization import init_weights
from megatron_yuyuan.train import trainer
from megatron_yuyuan.validation import validate

TORCH = TINY.replace(attention_dropout=0.2, attention_dropout_rng="torch")


@pytest.mark.parametrize(
    ("rng", "training", "expected"),
    [("torch", True, [0.2] * 8), ("torch", False, [0.0] * 8), ("counter", True, [])],
)
def test_torch_drops_inside_fused_attention(monkeypatch, rng, training, expected):
    """What fused attention is told to drop, layer by layer; the counter takes another path."""
    fused, seen = F.scaled_dot_product_attention, []

    def watched(q, k, v, mask=None, dropout_p=0.0, **options):
        seen.append(dropout_p)
        return fused(q, k, v, mask, dropout_p, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    tokens = torch.arange(16)[None]
    inputs = {"positions": tokens, "sample_ids": torch.zeros(1, dtype=torch.int64), "step": 0}
    model = GPT2(TORCH.replace(attention_dropout_rng=rng).model).train(training)
    init_weights(model, 0)
    model(tokens, **inputs)
    assert seen == expected


def without_seeds(config, first: int) -> list[list[list]]:
    trainer.seed_torch, kept = lambda *_: None, trainer.seed_torch
    try:
        return in_portions(config, first)
    finally:
        trainer.seed_torch = kept


def first_loss(config) -> float:
    return build_trainer(config, one_layout=True).gradients(RandomText())[0]


def test_a_resumed_run_draws_the_same_masks_and_another_layout_others(ranks):
    config = Layout(pipeline=2).of(TORCH)
    expected, actual = ranks.run(2, in_portions, config, 2)
    assert actual == expected
    unseeded = ranks.run(1, without_seeds, Layout().of(TORCH), 2)
    assert unseeded[1] != unseeded[0]  # it would be seen
    other, first = ranks.run(1, first_loss, Layout().of(TORCH)), expected[0][1]
    assert abs(other / first - 1) > 1e-4


def test_scores_that_float16_holds_do_not_overflow_on_their_way():
    """By the counter, which multiplies queries and keys itself: 64 * 40 * 40 / 8 is 12800."""
    config = TORCH.replace(hidden_size=64, num_attention_heads=1, attention_dropout_rng="counter")
    attention = Attention(config.model, 0, 0, Kernels()).train()
    x = torch.full((1, 1, 4, 64), 40.0, dtype=torch.float16)
    inputs = BlockInputs(torch.zeros(1, dtype=torch.int64), 0, None, None)
    assert attention.attend(x, x, x, inputs).isfinite().all()
    assert not (x @ x.transpose(-1, -2)).isfinite().any()


def test_no_comparison_of_layouts_takes_it():
    assert TORCH.replace(attention_dropout=0.0).is_layout_free
    assert TORCH.replace(attention_dropout_rng="counter").is_layout_free
    with pytest.raises(AssertionError, match="not to be compared"):
        build_trainer(TORCH)


def test_recomputation_that_would_draw_other_masks_is_refused():
    config = TORCH.replace(recompute_granularity="selective")
    with pytest.raises(ConfigErrors, match="other masks than the forward"):
        validate(config, 1)
    validate(config.replace(attention_dropout_rng="counter"), 1)
    validate(TORCH, 1)


class Shard(RandomText):
    """Random tokens that have a name, as a shard has."""

    shard = SimpleNamespace(prefix="random", meta={"documents": 1})


class Mesh:
    """What the start of a run asks of one."""

    axes = SimpleNamespace(mesh=torch.zeros(1, dtype=torch.int64))

    def size(self, axis: str) -> int:
        return 1

    def describe(self) -> str:
        return "one rank"


def test_the_start_of_a_run_says_so_once(capsys):
    for config, times in ((TORCH, 1), (TORCH.replace(attention_dropout_rng="counter"), 0)):
        introduce_plan(config, Mesh(), Shard(), None, Log(None, True))
        said = capsys.readouterr().out
        assert said.count("another layout would drop other weights") == times
