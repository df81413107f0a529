"""Every layout that works is found, and those that fit are ranked."""

import dataclasses
import itertools

import pytest

from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import ConfigError, ConfigErrors
from megatron_yuyuan.planner.clusters import GPUS, Cluster
from megatron_yuyuan.planner.memory import predict_memory
from megatron_yuyuan.planner.plan import LAYOUT, layout_settings, least_memory, predict
from megatron_yuyuan.planner.search import candidates, search
from megatron_yuyuan.validation import validate

SMALL = Config().replace(
    num_layers=4, hidden_size=256, num_attention_heads=4, vocab_size=1000, seq_length=128,
    max_position_embeddings=128, global_batch_size=8, train_iters=1, bf16=True,
)  # fmt: skip
NODES = Cluster(GPUS["a100-40g"], 8, gpus_per_node=4)


@pytest.fixture(scope="module")
def found():
    return search(SMALL, NODES, top=10_000)


def valid_layouts() -> set[tuple]:
    """By trying all values of all settings, one spelling of each layout."""
    sizes, found = (1, 2, 4, 8), set()
    schedules = [("1F1B", 0), ("ZBVZeroBubble", 0)]
    for schedule in ("Interleaved1F1B", "InterleavedZeroBubble"):
        schedules += [(schedule, stages) for stages in (2, 3, 4)]
    strategies = [("no_shard", 1)]
    for strategy in ("optim", "optim_grads_params"):
        strategies += [(strategy, instances) for instances in sizes]
    recomputations = [("none", "none", 0), ("full", "uniform", 1)]
    for tensor, pipeline, schedule, parallel, strategy, again, micro in itertools.product(
        sizes, sizes, schedules, (False, True), strategies, recomputations, sizes
    ):
        data = 8 // tensor // pipeline
        in_node = 4 // tensor
        if not data or tensor > 4 or (tensor == 1 and parallel):
            continue
        if (pipeline == 1 and schedule[0] != "1F1B") or (data == 1 and strategy[0] != "no_shard"):
            continue
        if strategy[1] > 1 and (data == strategy[1] or data // strategy[1] != in_node):
            continue
        settings = (tensor, pipeline, *schedule, parallel, *strategy, False, *again, micro)
        try:
            validate(SMALL.replace(**dict(zip(LAYOUT, settings, strict=True))), 8)
        except ConfigErrors:
            continue
        found.add(settings)
    return found


def test_every_valid_layout_is_found_once(found):
    layouts = [tuple(plan.settings.values()) for plan in found.fastest]
    assert len(layouts) == len(set(layouts)) == found.tried > 250
    assert set(layouts) == valid_layouts()


def test_the_fastest_comes_first_and_keeps_what_was_asked_for(found):
    times = [round(plan.time.total, 9) for plan in found.fastest]
    assert times == sorted(times) and times[0] < times[-1]
    kept = layout_settings(SMALL)
    for plan in found.fastest[::50]:
        assert plan.config.replace(**kept) == SMALL


def test_the_tensor_axis_stays_in_a_node(found):
    widths = {plan.settings["tensor_model_parallel_size"] for plan in found.fastest}
    assert widths == {1, 2, 4}


def test_no_tensor_group_straddles_two_nodes():
    three_a_node = dataclasses.replace(NODES, gpus=12, gpus_per_node=6)
    config = SMALL.replace(global_batch_size=24)
    found = candidates(config, three_a_node)
    assert {valid.parallel.tensor_model_parallel_size for valid in found} == {1, 2}


def test_memory_is_that_of_the_fullest_rank(found):
    for plan in found.fastest[::97]:
        ranks = range(plan.config.parallel.pipeline_model_parallel_size)
        held = [predict_memory(plan.config, 8, rank).total for rank in ranks]
        assert plan.memory.total == max(held)


def test_what_does_not_fit_is_left_out(found):
    middle = sorted(plan.memory.total for plan in found.fastest)[len(found.fastest) // 2]
    gpu = dataclasses.replace(NODES.gpu, memory_gib=1 + middle / 2**30)
    less = search(SMALL, dataclasses.replace(NODES, gpu=gpu), 1.0, top=10_000)
    assert 0 < len(less.fastest) < len(found.fastest)
    assert max(plan.memory.total for plan in less.fastest) <= middle < less.missed
    nothing = search(SMALL, dataclasses.replace(NODES, gpu=gpu), reserved_gib=gpu.memory_gib)
    assert not nothing.fastest and nothing.tried == found.tried
    assert 0 < nothing.missed <= min(plan.memory.total for plan in found.fastest)
    assert found.missed == float("inf")


def test_the_least_memory_is_below_what_is_predicted(found):
    shares = [least_memory(plan.config, NODES) / plan.memory.total for plan in found.fastest]
    assert 0.05 < min(shares) < max(shares) < 1


def test_selective_recomputation_is_tried_where_scores_are_kept():
    def kinds(config):
        return {found.parallel.recomputed for found in candidates(config, NODES)}

    assert kinds(SMALL) == {"none", "full"}
    assert kinds(SMALL.replace(attention_dropout=0.1)) == {"none", "selective", "full"}


def test_figures_of_a_plan_agree_with_each_other(found):
    plan = found.fastest[0]
    assert plan.tokens_per_second * plan.time.total == pytest.approx(8 * 128)
    assert plan.hours(3600 * plan.tokens_per_second) == pytest.approx(1.0)
    assert plan.kilowatt_hours(3600 * plan.tokens_per_second) == pytest.approx(8 * 0.4)
    assert 0 < plan.mfu < 1
    assert predict(plan.config, NODES) == plan


def test_few_are_enough_for_the_best_of_each_division(found):
    few = search(SMALL, NODES, top=2)
    assert few.fastest == found.fastest[:2] and few.divisions == found.divisions
    first: dict[tuple, object] = {}
    for plan in found.fastest:
        first.setdefault(tuple(plan.settings.values())[:2], plan)
    assert few.divisions == list(first.values()) and len(few.divisions) == 8


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"bf16": False}, "neither bf16 nor fp16"),
        ({"lora_rank": 8}, "lora_rank=8"),
        ({"global_batch_size": 0}, "global_batch_size is not given"),
        ({"pipeline_layout": (2, 2)}, "pipeline_layout=2 2"),
    ],
)
def test_a_step_that_is_not_known_is_refused(changes, what):
    with pytest.raises(ConfigError, match=what):
        search(SMALL.replace(**changes), NODES)


def test_a_model_that_no_layout_suits_says_why():
    with pytest.raises(ConfigErrors, match="hidden_size=250 is not a multiple"):
        search(SMALL.replace(hidden_size=250), NODES)
    with pytest.raises(ConfigErrors, match="global_batch_size=7 is not a multiple"):
        search(SMALL.replace(global_batch_size=7, num_layers=1), Cluster(NODES.gpu, 8))
