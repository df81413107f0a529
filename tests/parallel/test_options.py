"""Every option on every layout of 8 ranks, and every pair of options, against one process.

`make test-all` runs all combinations.
"""

import pytest
from options import DEFAULTS, LAYOUTS, MODELS, OPTIONS, configured, model_for, singles, works
from pairs import pairs_of, possible_rows, read_table, values
from tiny import largest_difference
from trajectory import five_steps

BOUND = 1e-5
"""Of every gradient of the first step, and of losses and norms."""
HALF_BOUND = 3e-3
"""Of losses in bfloat16 and float16; test_layouts.py shows what it is made from."""
AT_ONCE = 8
"""Combinations that one process group computes, one after another."""
ROWS = possible_rows(values(OPTIONS, LAYOUTS), works)


def trajectories(choices: list[dict[str, str]]) -> list:
    return [five_steps(configured(choice)) for choice in choices]


@pytest.fixture(scope="module")
def alone(ranks):
    return {model: ranks.run(1, five_steps, model) for model in MODELS.values()}


def check(ranks, alone, choices: list[dict[str, str]]) -> None:
    expected_gradients, expected = alone[model_for(LAYOUTS[choices[0]["layout"]])]
    for start in range(0, len(choices), AT_ONCE):
        part = choices[start : start + AT_ONCE]
        for choice, found in zip(part, ranks.run(8, trajectories, part), strict=True):
            gradients, figures = found
            if (DEFAULTS | choice)["precision"] == "float32":
                difference, name = largest_difference(gradients, expected_gradients)
                assert difference <= BOUND, (choice, name)
                assert figures == pytest.approx(expected, rel=BOUND), choice
            else:  # of losses: norms of gradients in half precision spread more
                assert figures[::2] == pytest.approx(expected[::2], rel=HALF_BOUND), choice


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_option_takes_the_steps_one_process_takes(ranks, alone, layout):
    check(ranks, alone, singles(layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_pair_of_options_does(ranks, alone, layout):
    check(ranks, alone, [row for row in read_table() if row["layout"] == layout])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("schedule", OPTIONS["schedule"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_combination_does(ranks, alone, layout, schedule):
    chosen = [r for r in ROWS if (r["layout"], r["schedule"]) == (layout, schedule)]
    check(ranks, alone, chosen)


def test_the_table_holds_every_pair_that_can_stand_together():
    """So that no case disappears unseen: pairs.py writes the table."""
    table = read_table()
    assert all(map(works, table))
    assert set().union(*map(pairs_of, table)) == set().union(*map(pairs_of, ROWS))
    assert len(singles("pp2dp2tp2")) == 1 + sum(len(values) - 1 for values in OPTIONS.values())
