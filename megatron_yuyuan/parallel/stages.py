"""Which layers each stage of the pipeline holds, and which pipeline rank holds each stage.

A stage is a consecutive run of layers. The first has the embeddings before them, the last ln_f and
the head after them. Everything here follows from the configuration, alike on every rank.
"""

from dataclasses import dataclass
from fractions import Fraction

from megatron_yuyuan.config import Config, ParallelConfig
from megatron_yuyuan.model.flops import block_flops, head_flops


@dataclass(frozen=True)
class StagePlan:
    """The stages of a pipeline, in the order of the model."""

    layers: tuple[range, ...]
    """The layers of each stage."""
    ranks: tuple[int, ...]
    """The pipeline rank of each stage."""

    def __len__(self) -> int:
        return len(self.layers)

    def of_rank(self, rank: int) -> list[int]:
        """The stages of a pipeline rank, in the order of the model."""
        return [stage for stage, owner in enumerate(self.ranks) if owner == rank]


def plan_stages(config: Config) -> StagePlan:
    """The stages of a validated configuration: by pipeline_layout, or balanced by cost."""
    parallel = config.parallel
    ranks = stage_ranks(parallel)
    counts = parallel.pipeline_layout or balanced(config, ranks)
    ends = [sum(counts[: stage + 1]) for stage in range(len(counts))]
    layers = tuple(range(end - count, end) for end, count in zip(ends, counts, strict=True))
    return StagePlan(layers, ranks)


def stage_ranks(parallel: ParallelConfig) -> tuple[int, ...]:
    """The pipeline rank of each stage.

    1F1B has a stage a rank. The interleaved schedules go through the ranks several times: 0 1 2 3
    0 1 2 3. ZBVZeroBubble goes there and back, so that embedding and head meet on rank 0: 0 1 2 3 3
    2 1 0. A single rank has a single stage.
    """
    there = tuple(range(parallel.pipeline_model_parallel_size))
    if parallel.pipeline_schedule == "ZBVZeroBubble" and len(there) > 1:
        return there + there[::-1]
    return there * parallel.stages_per_rank


def balanced(config: Config, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Layers per stage that minimise the cost of the most expensive stage.

    A block costs its matrix products, so does the head; the embedding costs an addition for every
    element of its dense gradient and of its output, per micro batch. Every stage begins with one
    layer; each further one goes to the stage that would then cost least, of equal ones to the rank
    that would. Layers cost the same, so this is the optimum.
    """
    model, tokens, micro = config.model, config.data.seq_length, config.training.micro_batch_size
    layer = 3 * micro * block_flops(model, tokens)
    costs = [layer] * len(ranks)
    costs[0] += (model.padded_vocab_size + 2 * micro * tokens) * model.hidden_size
    costs[-1] += 3 * micro * head_flops(model, tokens)
    counts = [1] * len(ranks)

    def cost_of_rank(rank: int) -> int:
        return sum(cost for cost, owner in zip(costs, ranks, strict=True) if owner == rank)

    for _ in range(model.num_layers - len(ranks)):
        stage = min(range(len(ranks)), key=lambda s: (costs[s], cost_of_rank(ranks[s]), s))
        costs[stage] += layer
        counts[stage] += 1
    return tuple(counts)


def bubble_fraction(schedule: str, ranks: int, virtual: int, micro_batches: int) -> Fraction:
    """The bubble: the share of a step for which each of `ranks` pipeline ranks waits for others.

    A forward counts 1, a backward 2, stages are equal, and the micro batches are a multiple of the ranks
    (ZBVZeroBubble: at least 2 ranks - 1). virtual: stages a rank. Source: Narayanan et al. 2021,
    arXiv:2104.04473, section 2.2; the zero-bubble schedules wait for forwards alone, Qi et al. 2023,
    arXiv:2401.10241.
    """
    waiting = ranks - 1 if "ZeroBubble" in schedule else 3 * (ranks - 1)
    return Fraction(waiting, 3 * virtual * micro_batches + waiting)


def runs_as(parallel: ParallelConfig, micro_batches: int) -> str:
    """The schedule that runs so many micro batches of a data rank.

    torch's 1F1B refuses fewer micro batches than stages, its interleaved ones counts that their
    rounds do not divide. There the same stages run in GPipe's order, all forwards before all
    backwards, with the same result: `GPipe`, or with several stages a rank `LoopedBFS`.
    """
    pipeline, schedule = parallel.pipeline_model_parallel_size, parallel.pipeline_schedule
    if schedule == "1F1B":
        return schedule if micro_batches >= pipeline else "GPipe"
    if schedule == "ZBVZeroBubble":
        return schedule
    rounds = max(1, micro_batches // pipeline)
    return schedule if micro_batches % rounds == 0 else "LoopedBFS"
