"""Recomputation on divided models: what is gathered is there when it is computed again."""

import pytest
from tiny import TINY, Layout, largest_difference
from trajectory import five_steps

from megatron_yuyuan.cli import parse_config
from megatron_yuyuan.errors import ConfigError, ConfigErrors
from megatron_yuyuan.validation import validate

DROPOUT = TINY.replace(hidden_dropout=0.1, attention_dropout=0.1)
SELECTIVE = {"recompute_activations": True}
BLOCK = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 2}
UNIFORM = BLOCK | {"recompute_method": "uniform", "recompute_num_layers": 3}
BRIEFLY = {"data_parallel_sharding_strategy": "optim_grads_params"}
CASES = {
    "pp1dp1tp1-uniform": (Layout(), UNIFORM),
    "pp1dp2tp2sp-selective": (Layout(1, 2, 2, True), SELECTIVE),
    "pp1dp2tp2sp-uniform-briefly": (Layout(1, 2, 2, True), UNIFORM | BRIEFLY),
    "pp2dp2tp1-block-briefly": (Layout(2, 2), BLOCK | BRIEFLY),
    "pp2dp1tp2-uniform": (Layout(2, 1, 2), UNIFORM),
}
LONGER = ("pp1dp2tp2sp-selective", "pp1dp2tp2sp-uniform-briefly", "pp2dp1tp2-uniform")
"""Run by make test-all."""


@pytest.fixture(scope="module")
def alone(ranks):
    return ranks.run(1, five_steps, DROPOUT)


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        pytest.param(*case, id=name, marks=pytest.mark.slow if name in LONGER else ())
        for name, case in CASES.items()
    ],
)
def test_recomputation_changes_no_step(ranks, alone, layout, options):
    gradients, figures = ranks.run(layout.ranks, five_steps, layout.of(DROPOUT).replace(**options))
    difference, name = largest_difference(gradients, alone[0])
    assert difference <= 1e-5, name
    assert figures == pytest.approx(alone[1], rel=1e-5)


def test_recomputation_changes_no_bit_of_the_same_layout(ranks):
    layout = Layout(tensor=2, sequence_parallel=True).of(DROPOUT)
    expected = ranks.run(2, five_steps, layout)
    gradients, figures = ranks.run(2, five_steps, layout.replace(**UNIFORM))
    assert figures == expected[1]
    assert largest_difference(gradients, expected[0])[0] == 0


def test_megatrons_flags_choose_what_is_recomputed():
    full = ["--recompute-granularity", "full", "--recompute-method", "block"]
    parallel = parse_config("", [*full, "--recompute-num-layers", "3"]).parallel
    chosen = (parallel.recomputed, parallel.recompute_method, parallel.recompute_num_layers)
    assert chosen == ("full", "block", 3)
    assert parse_config("", ["--recompute-activations"]).parallel.recomputed == "selective"
    assert parse_config("", []).parallel.recomputed == "none"
    with pytest.raises(ConfigError, match="whole"):
        parse_config("", ["--recompute-granularity", "whole"])


@pytest.mark.parametrize("options", [{}, SELECTIVE, BLOCK, UNIFORM])
def test_what_fits_together_is_accepted(options):
    validate(TINY.replace(**options), 1)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (BLOCK | SELECTIVE, "recompute_activations with recompute_granularity=full"),
        ({"recompute_granularity": "full"}, "full with recompute_method=none"),
        (BLOCK | {"recompute_num_layers": 0}, "block and recompute_num_layers=0"),
        (SELECTIVE | {"recompute_method": "block"}, "with recompute_granularity=selective"),
        ({"recompute_num_layers": 2}, "recompute_num_layers=2 with recompute_granularity=none"),
    ],
)
def test_what_contradicts_itself_is_refused(options, what):
    with pytest.raises(ConfigErrors, match=what):
        validate(TINY.replace(**options), 1)
