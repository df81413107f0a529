"""Seconds of one training step of a configuration on a cluster, by part."""

from dataclasses import dataclass

from megatron_yuyuan.config import Config, ParallelConfig
from megatron_yuyuan.parallel.stages import StagePlan, plan_stages, runs_as
from megatron_yuyuan.planner.clusters import Cluster
from megatron_yuyuan.planner.exchange_time import ExchangeTime
from megatron_yuyuan.planner.layer_time import LayerTime, Work
from megatron_yuyuan.planner.memory import recomputed_runs


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step of the busiest rank of the pipeline. They add up: what others hide is left out."""

    matmul: float
    """Products with weights, recomputation included."""
    attention: float
    """Scores, softmax, and the weighted sum of values."""
    pointwise: float
    """All that is neither: bound by memory."""
    tensor: float
    """Waiting for exchanges of the tensor axis."""
    pipeline: float
    """Waiting for the hidden states of other stages."""
    data: float
    """Waiting for weights and gradients of other data ranks."""
    bubble: float
    """Waiting for the pipeline to fill and to drain."""
    optimizer: float
    """The update and the copies around it."""

    @property
    def total(self) -> float:
        return sum(vars(self).values())


@dataclass(frozen=True)
class RankWork:
    """What a pipeline rank computes for one micro batch, and the parameters that a tensor rank of it holds."""

    forward: Work
    backward: Work
    parameters: float

    @property
    def total(self) -> float:
        return self.forward.total + self.backward.total


def predict_step(config: Config, cluster: Cluster) -> StepTime:
    """Predict the time of a step, of a valid configuration in bfloat16 or float16 whose vocabulary and global
    batch are known.

    The ranks of the pipeline compute m micro batches each, the busiest without a pause; then the others'
    last work is waited for (`idle_stages`). Exchanges of the data axis lie beside the first forward and
    the last backward. AdamW reads weight, gradient and both moments and writes all but the gradient, all
    float32, reads the gradient twice more for its norm and its clipping: 36 bytes of each parameter that a
    data rank holds. Of each parameter of the tensor rank another 18 are moved, once per step: cast to 2 bytes
    and copied out of the gather, its gradient zeroed, widened and copied into the scatter.
    """
    layer, exchange = LayerTime(config, cluster), ExchangeTime(config, cluster)
    plan, micro_batches = plan_stages(config), exchange.micro_batches
    pipeline = config.parallel.pipeline_model_parallel_size
    ranks = [_rank_work(rank, plan, layer, micro_batches) for rank in range(pipeline)]
    busiest = max(ranks, key=lambda rank: rank.total)
    stage = sum(rank.total for rank in ranks) / len(plan)
    units = 1 + sum(len(plan.layers[s]) for s in plan.of_rank(ranks.index(busiest)))
    return StepTime(
        **vars((busiest.forward + busiest.backward) * micro_batches),
        pipeline=exchange.between_stages(),
        data=exchange.between_data_ranks(
            busiest.parameters, units, busiest.forward.total, busiest.backward.total
        ),
        bubble=idle_stages(config.parallel, micro_batches) * stage,
        optimizer=layer.moved((36 / exchange.shards + 18) * busiest.parameters),
    )


def idle_stages(parallel: ParallelConfig, micro_batches: int) -> float:
    """How long a rank waits in a step, in times of a stage's forward and backward.

    A rank of p begins, or ends, up to p - 1 stages after another: docs/parallelism.md has the shares of a
    step that follow, `tests/parallel/test_stages.py` plays the tables that torch executes. The zero-bubble
    schedules wait for forwards alone, a third. Fewer micro batches than ranks leave a gap of the missing
    ones at each further round of the interleaved schedules.
    """
    ranks, rounds = parallel.pipeline_model_parallel_size, parallel.stages_per_rank
    if ranks == 1:
        return 0.0
    waits = ranks - 1 + (rounds - 1) * max(0, ranks - micro_batches)
    return waits / 3 if runs_as(parallel, micro_batches).endswith("ZeroBubble") else waits


def _rank_work(rank: int, plan: StagePlan, layer: LayerTime, micro_batches: int) -> RankWork:
    forward, backward, parameters = Work(), Work(), 0.0
    model = layer.model
    c, f, t = model.hidden_size, model.mlp_size, layer.tensor
    for stage in plan.of_rank(rank):
        blocks = len(plan.layers[stage])
        forward += layer.block_forward * blocks
        backward += layer.block_backward * blocks + _recomputation(blocks, layer)
        parameters += blocks * ((4 * c * c + 2 * c * f + 3 * c + f) / t + 6 * c)
        if stage == 0:
            forward += layer.embedding
        if stage == len(plan) - 1:
            forward += layer.head
        if stage in (0, len(plan) - 1):
            parameters += model.padded_vocab_size * c / t
    if micro_batches > 1:  # a gradient is read, and read and written with its float32 sum
        backward += Work(pointwise=layer.moved(10 * parameters))
    return RankWork(forward, backward, parameters)


def _recomputation(blocks: int, layer: LayerTime) -> Work:
    """Whole blocks of a stage, computed again in runs."""
    runs = [length for length, again in recomputed_runs(blocks, layer.config.parallel) if again]
    return layer.block_forward * (sum(runs) - len(runs)) + layer.last_recomputed * len(runs)
