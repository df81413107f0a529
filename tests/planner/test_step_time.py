"""The algebra of a step's seconds, held to figures that come from elsewhere."""

import dataclasses

import pytest
from parallel.test_stages import SCHEDULES, UNITS, actions, played

from megatron_yuyuan.config import Config
from megatron_yuyuan.model.flops import block_flops, head_flops
from megatron_yuyuan.planner import layer_time, step_time
from megatron_yuyuan.planner.clusters import GPUS, Cluster
from megatron_yuyuan.planner.dry_run import dry_run
from megatron_yuyuan.planner.exchange_time import ExchangeTime
from megatron_yuyuan.planner.layer_time import LayerTime
from megatron_yuyuan.planner.rates import (
    COLLECTIVE_SECONDS,
    LINK_SHARE,
    MEMORY_SHARE,
    NETWORK_SHARE,
    RATES,
)
from megatron_yuyuan.planner.step_time import StepTime, idle_stages, predict_step
from megatron_yuyuan.train.throughput import training_flops

MODEL = Config().replace(
    num_layers=30, hidden_size=3072, num_attention_heads=32, vocab_size=50257, seq_length=1024,
    max_position_embeddings=1024, micro_batch_size=4, global_batch_size=512, bf16=True,
)  # fmt: skip
A100 = GPUS["a100-80g"]
NODE = Cluster(A100, 8)
NODES = Cluster(A100, 32)
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
MATMUL_RATE = 1e12 * A100.peak_tflops * RATES["ampere"].matmul


def step(cluster: Cluster = NODES, config: Config = MODEL, **changes) -> StepTime:
    return predict_step(config.replace(**changes), cluster)


@pytest.fixture
def no_overhead(monkeypatch):
    """Products run at the full rate, however short their inner dimension."""
    monkeypatch.setattr(layer_time, "INNER_OVERHEAD", 0)


@pytest.mark.usefixtures("no_overhead")
@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_products_take_the_flops_that_a_run_counts(tensor):
    """Those of throughput.py without attention, over the rate and all GPUs."""
    causal = 6 * 1024**2 * 3072 * 30
    flops = 512 * (training_flops(MODEL.model, 1024) - causal)
    expected = flops / 32 / MATMUL_RATE
    assert step(tensor_model_parallel_size=tensor).matmul == pytest.approx(expected, rel=1e-9)


def test_short_inner_dimensions_take_longer():
    whole, divided = step().matmul, step(tensor_model_parallel_size=8).matmul
    assert 1.05 * whole < divided < 1.15 * whole


@pytest.mark.usefixtures("no_overhead")
@pytest.mark.parametrize(("dropout", "products"), [(0.1, 12), (0.0, 8)])
def test_recomputation_repeats_what_the_backward_needs(dropout, products):
    """Of a block's 12 C^2 all, or where nothing after them is kept, all but the last product's 4 C^2."""
    plain, again = step(hidden_dropout=dropout), step(hidden_dropout=dropout, **FULL)
    tokens = 512 * 1024 / 32
    expected = 30 * 2 * tokens * products * 3072**2 / MATMUL_RATE
    assert again.matmul - plain.matmul == pytest.approx(expected, rel=1e-9)
    assert again.attention - plain.attention == pytest.approx(plain.attention / 3.5, rel=1e-9)


def test_recomputation_by_block_repeats_so_many_of_each_stage():
    half = dict(FULL, recompute_method="block", recompute_num_layers=3)
    two = {"pipeline_model_parallel_size": 2, "pipeline_layout": (15, 15)}
    plain, some, all_ = step(**two), step(**two, **half), step(**two, **FULL)
    assert (some.matmul - plain.matmul) * 5 == pytest.approx(all_.matmul - plain.matmul)


@pytest.mark.usefixtures("no_overhead")
@pytest.mark.parametrize(
    ("changes", "attention"),
    [
        ({"pipeline_model_parallel_size": 2}, 3.5),
        (FULL | {"recompute_num_layers": 2}, 4.5),
        pytest.param(FULL, 4.5, marks=pytest.mark.slow),
        pytest.param(FULL | {"hidden_dropout": 0.1}, 4.5, marks=pytest.mark.slow),
        pytest.param(FULL | {"recompute_method": "block"}, 3.75, marks=pytest.mark.slow),
    ],
)
def test_the_code_itself_computes_as_many_flops(changes, attention):
    """As the dry run counts them on a rank; attention's, which have another rate, by formula."""
    config = MODEL.replace(
        num_layers=4, hidden_size=256, num_attention_heads=4, vocab_size=1000, seq_length=128,
        max_position_embeddings=128, micro_batch_size=2, global_batch_size=8, train_iters=1,
        tensor_model_parallel_size=2, **changes,
    )  # fmt: skip
    busiest = config.parallel.pipeline_model_parallel_size - 1  # it has the head
    data = 4 // 2 // (busiest + 1)
    blocks = len(step_time.plan_stages(config).layers[-1])
    cores = attention * 4 * (8 // data) * 128**2 * 256 / 2 * blocks
    computed = dry_run(config, 4, 3 if busiest else 0).flops
    predicted = predict_step(config, Cluster(A100, 4)).matmul * MATMUL_RATE
    assert predicted + cores == pytest.approx(computed, rel=1e-9)


def test_unfused_attention_moves_every_score_through_memory():
    fused, unfused = step(), step(attention_impl="fused_softmax")
    scores = 30 * (512 / 32) * 32 * 1024**2
    moved = 22 * scores / (1e9 * A100.memory_gb_per_second * MEMORY_SHARE)
    assert unfused.attention > moved > fused.attention
    dropped = step(attention_impl="fused_softmax", attention_dropout=0.1)
    assert (dropped.attention - unfused.attention) * 22 == pytest.approx(10 * moved)
    assert step(attention_dropout=0.1).attention == dropped.attention  # by the counter: unfused too
    by_torch = step(attention_dropout=0.1, attention_dropout_rng="torch")
    assert by_torch.attention == fused.attention
    again = step(attention_impl="fused_softmax", recompute_granularity="selective")
    assert again.attention > unfused.attention and again.matmul == unfused.matmul


def test_sequence_parallelism_divides_the_residual_stream_and_exchanges_more():
    whole = step(tensor_model_parallel_size=4)
    divided = step(tensor_model_parallel_size=4, sequence_parallel=True)
    assert divided.pointwise < 0.8 * whole.pointwise
    assert divided.tensor > whole.tensor > 0 == step().tensor


def test_a_slow_link_shows_what_products_had_hidden():
    """Where nothing is hidden, forward and backward wait for 4 (t-1)/t H each, embedding and head for one
    all-reduce each (docs/parallelism.md)."""
    slow = dataclasses.replace(A100, link_gb_per_second=0.3)
    config = MODEL.replace(tensor_model_parallel_size=2, pipeline_schedule="ZBVZeroBubble")
    layer = LayerTime(config.replace(pipeline_model_parallel_size=2), Cluster(slow, 8))
    hidden = 2 * 4 * 1024 * 3072
    sent = layer.block_forward.tensor * 0.3e9 * layer_time.LINK_SHARE
    assert sent == pytest.approx(4 * hidden / 2, rel=1e-3)
    assert layer.block_backward.tensor == layer.block_forward.tensor
    overlapped = LayerTime(config.replace(pipeline_schedule="1F1B"), Cluster(slow, 8))
    assert 0 < overlapped.block_backward.tensor < layer.block_backward.tensor
    assert LayerTime(config, Cluster(A100, 8)).block_backward.tensor == 0


@pytest.mark.parametrize(("schedule", "virtual"), SCHEDULES[1:])
@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (4, 8), (4, 16), (8, 16), (4, 2)])
def test_ranks_wait_as_the_played_tables_do(schedule, virtual, ranks, micro_batches):
    parallel = MODEL.replace(
        pipeline_model_parallel_size=ranks,
        pipeline_schedule=schedule,
        num_virtual_stages_per_pipeline_rank=virtual,
    ).parallel
    runs = step_time.runs_as(parallel, micro_batches)
    length, _ = played(actions(runs, ranks, virtual, micro_batches), ranks * virtual)
    waited = length - 3 * virtual * micro_batches
    predicted = UNITS["F"] * 3 * idle_stages(parallel, micro_batches)
    assert predicted == waited or (micro_batches < ranks and predicted <= waited)


def test_the_dearest_stage_sets_the_pace_and_the_others_fill():
    even = step(pipeline_model_parallel_size=2, pipeline_layout=(15, 15), vocab_size=128)
    uneven = step(pipeline_model_parallel_size=2, pipeline_layout=(20, 10), vocab_size=128)
    assert uneven.matmul == pytest.approx(even.matmul * 20 / 15, rel=0.01)
    assert uneven.bubble == pytest.approx(even.bubble, rel=0.02)
    assert step().bubble == step().pipeline == 0.0


def test_zero_bubble_waits_a_third():
    interleaved, zero = (
        step(pipeline_model_parallel_size=4, pipeline_schedule=schedule)
        for schedule in ("Interleaved1F1B", "InterleavedZeroBubble")
    )
    assert zero.bubble == pytest.approx(interleaved.bubble / 3)


def test_what_computation_cannot_hide_of_the_data_axis_is_waited_for():
    slow = Cluster(A100, 32, 8, 1.0)
    fast, waited = step().data, step(slow).data
    weights = MODEL.model.num_parameters * 31 / 32 / (1e9 * 0.8)
    micro = (step().matmul + step().attention + step().pointwise) / 4
    assert waited == pytest.approx(6 * weights - micro, rel=0.02)
    assert fast < 0.01 * waited
    assert step(slow, data_parallel_sharding_strategy="optim_grads_params").data > 3 * waited
    assert step(Cluster(A100, 1)).data == 0.0


def test_replicas_in_nodes_gather_there_and_reduce_between_them():
    """Gathers for every micro batch stay inside; the one all-reduce sends more than a scatter would."""
    slow, instances = Cluster(A100, 32, 8, 10.0), {"num_distributed_optimizer_instances": 4}
    briefly = {"data_parallel_sharding_strategy": "optim_grads_params"}
    assert step(slow, **briefly, **instances).data < 0.5 * step(slow, **briefly).data
    assert step(slow, **instances).data > step(slow).data


@pytest.mark.parametrize(("pipeline", "data", "share"), [(3, 4, NETWORK_SHARE), (2, 6, LINK_SHARE)])
def test_a_group_that_straddles_two_nodes_waits_for_their_network(pipeline, data, share):
    """Of nodes of 6, as fast between them as inside: ranks 4 to 7 lie on two."""
    nodes = Cluster(A100, 12, 6, 1e6)
    config = MODEL.replace(pipeline_model_parallel_size=pipeline, global_batch_size=48)
    exchange = ExchangeTime(config, nodes)
    waited = exchange.between_data_ranks(1e9, units=1, forward=0.0, backward=0.0)
    sent = 6e9 * (data - 1) / data
    assert waited == pytest.approx(sent / (300e9 * share) + 2 * COLLECTIVE_SECONDS)


def test_an_update_is_divided_over_the_shards():
    divided = step().optimizer
    whole = step(data_parallel_sharding_strategy="no_shard").optimizer
    assert whole == pytest.approx(divided * (36 + 18) / (36 / 32 + 18))


def test_ranks_hold_all_parameters_together():
    """But the positions and ln_f; the tied embedding is there twice."""
    config = MODEL.replace(pipeline_model_parallel_size=3, tensor_model_parallel_size=2)
    layer, plan = LayerTime(config, NODE), step_time.plan_stages(config)
    held = [step_time._rank_work(rank, plan, layer, 1).parameters for rank in range(3)]
    embedding, width = 50304 * 3072, 3072
    twice_whole = 30 * 6 * width  # biases and LayerNorms that each tensor rank holds
    expected = config.model.num_parameters + embedding + twice_whole - (1024 + 2) * width
    assert 2 * sum(held) == expected


def test_parts_add_up_and_each_can_be_seen():
    config = MODEL.replace(
        tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True
    )
    time = predict_step(config, NODES)
    assert min(vars(time).values()) > 0 and sum(vars(time).values()) == time.total
    flops = 3 * (30 * block_flops(config.model, 1024) + head_flops(config.model, 1024)) * 512 / 32
    assert time.total > flops / (1e12 * A100.peak_tflops)
