"""Every option, and every pair of options, on the layouts of 8 ranks against one process. `make test-all` runs
every combination too, about an hour."""

from functools import cache

import pytest
from options import AXES, DEFAULTS, DROPOUT, LAYOUTS, OPTIONS, configured, singles, works
from pairs import pairs_of, possible_rows, read_table, values
from tiny import RandomText, build_trainer
from trajectory import figures_of_five_steps

from megatron_yuyuan.config import ParallelConfig
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.parallel.pipeline import DIVIDES_BACKWARD

BOUND = 1e-5
HALF_BOUND = 3e-3
"""Of losses in bfloat16 and float16; test_layouts.py shows what it is made from."""
ROWS = possible_rows(values(OPTIONS, LAYOUTS), works)
AT_ONCE = 6
"""Combinations of the full product that one process group computes, one after another, in the time that a
call of the pool may take."""


def trajectories(choices: list[dict[str, str]]) -> list[list[float]]:
    """Five steps of each, on meshes that are made once: groups take longer to make than to use, and each
    of gloo's wakes its thread a hundred times a second."""
    start = cache(mesh_module.start)
    mesh_module.start = lambda parallel: start(of_the_mesh(parallel))
    return [
        figures_of_five_steps(build_trainer(configured(choice)), RandomText()) for choice in choices
    ]


def of_the_mesh(parallel: ParallelConfig) -> ParallelConfig:
    """What a mesh is made from, all else at its default."""
    names = [
        *("tensor_model_parallel_size", "pipeline_model_parallel_size", "device"),
        *("data_parallel_sharding_strategy", "num_distributed_optimizer_instances"),
    ]
    if parallel.pipeline_schedule == "ZBVZeroBubble":
        names.append("pipeline_schedule")
    return ParallelConfig(**{name: getattr(parallel, name) for name in names})


def alone_for(config) -> list[float]:
    return figures_of_five_steps(build_trainer(config), RandomText())


@pytest.fixture(scope="module")
def alone(ranks):
    """Five steps of one rank, by the number of layers."""
    models = {layers: DROPOUT.replace(num_layers=layers) for layers in (2, 4, 8, 16)}
    return {layers: ranks.run(1, alone_for, model) for layers, model in models.items()}


def check(ranks, alone, choices: list[dict[str, str]]) -> None:
    """Of the choices that this torch can compute: zero bubbles need torch 2.13."""
    if not DIVIDES_BACKWARD:
        choices = [c for c in choices if "ZeroBubble" not in c.get("schedule", "")]
    for choice, found in zip(choices, ranks.run(8, trajectories, choices), strict=True):
        expected = alone[configured(choice).model.num_layers]
        if (DEFAULTS | choice)["precision"] == "float32":
            assert found == pytest.approx(expected, rel=BOUND), choice
        else:  # losses: norms of gradients in half precision spread more
            assert found[::2] == pytest.approx(expected[::2], rel=HALF_BOUND), choice


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_option_and_pair_takes_the_steps_one_process_takes(ranks, alone, layout):
    pairs = [row for row in read_table() if row["layout"] == layout]
    check(ranks, alone, [*singles(layout), *pairs])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("schedule", OPTIONS["schedule"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_combination_does(ranks, alone, layout, schedule):
    chosen = [r for r in ROWS if (r["layout"], r["schedule"]) == (layout, schedule)]
    for start in range(0, len(chosen), AT_ONCE):
        check(ranks, alone, chosen[start : start + AT_ONCE])


def test_the_table_holds_every_pair_that_can_stand_together():
    """So that no case disappears unseen: pairs.py writes the table."""
    table = read_table()
    assert all(map(works, table))
    assert set().union(*map(pairs_of, table)) == set().union(*map(pairs_of, ROWS))
    for name, layout in LAYOUTS.items():
        matters = [
            of for option, of in OPTIONS.items() if getattr(layout, AXES.get(option, "ranks")) > 1
        ]
        assert len(singles(name)) == 1 + sum(len(of) - 1 for of in matters), name
