"""Which layouts of the model over the ranks can work. `validate` asks."""

import math
from collections.abc import Iterable, Iterator

from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import ConfigError

Problems = Iterator[ConfigError]


def layout_problems(config: Config, world_size: int) -> Problems:
    """The model over the ranks, and what its backward computes again."""
    yield from _recomputation(config)
    yield from _attention_dropout(config)
    m, p = config.model, config.parallel
    tensor, pipeline = p.tensor_model_parallel_size, p.pipeline_model_parallel_size
    shares = {
        f"num_attention_heads={m.num_attention_heads}": m.num_attention_heads,
        f"the padded vocabulary {m.padded_vocab_size}": m.padded_vocab_size,
        f"the MLP's width {m.mlp_size}": m.mlp_size,
    }
    if p.sequence_parallel:
        shares[f"with sequence_parallel, seq_length={config.data.seq_length}"] = (
            config.data.seq_length
        )
    for what, size in shares.items():
        if size % tensor:
            yield ConfigError(
                f"{what} cannot be divided over tensor_model_parallel_size={tensor}",
                "a tensor rank computes whole heads and an equal share of everything else",
                one_of(divisors(math.gcd(*shares.values())), tensor),
            )
    yield from _stages(config)
    if world_size % p.model_ranks:
        multiples = range(p.model_ranks, 2 * world_size + p.model_ranks, p.model_ranks)
        yield ConfigError(
            f"{world_size} {'rank' if world_size == 1 else 'ranks'} cannot be divided into "
            f"tensor {tensor} x pipeline {pipeline}",
            "the number of ranks is tensor x pipeline x data",
            f"{one_of(multiples, world_size, 2)} ranks ({_started_by(config)}), or another layout",
        )
        data = 0
    else:
        data = p.data_ranks(world_size)
    yield from _replicas(config, data)
    yield from _batches(config, data)


def _started_by(config: Config) -> str:
    """What says how many ranks there are."""
    return "--dry-run-ranks" if config.parallel.dry_run else "torchrun --nproc-per-node"


def _stages(config: Config) -> Problems:
    """The layers over the stages of the pipeline."""
    p, layers = config.parallel, config.model.num_layers
    pipeline, virtual = p.pipeline_model_parallel_size, p.num_virtual_stages_per_pipeline_rank
    allowed = {"1F1B": (0, 1), "ZBVZeroBubble": (0, 2)}.get(p.pipeline_schedule)
    if virtual == 1 if allowed is None else virtual not in allowed:
        yield ConfigError(
            f"num_virtual_stages_per_pipeline_rank={virtual} under pipeline_schedule={p.pipeline_schedule}",
            "1F1B has one stage a rank, ZBVZeroBubble two, the interleaved schedules two or more",
            "leave it out, or --pipeline-schedule Interleaved1F1B with 2 or more",
        )
        return
    stages = pipeline * p.stages_per_rank
    if stages > layers:
        yield ConfigError(
            f"num_layers={layers} cannot be divided over {stages} stages, {p.stages_per_rank} on each "
            f"of pipeline_model_parallel_size={pipeline}",
            "a stage holds one layer at least",
            f"--pipeline-model-parallel-size {max(1, layers // p.stages_per_rank)} or less",
        )
    layout = p.pipeline_layout
    if layout and (len(layout) != stages or sum(layout) != layers or min(layout) < 1):
        yield ConfigError(
            f"pipeline_layout={' '.join(map(str, layout))} for {layers} layers on {stages} stages",
            "it gives each stage its number of layers, one at least, and they add up to num_layers",
            f"{_even(layers, stages)}leave it out: the stages are then balanced by cost",
        )
    if p.splits_backward:
        yield from _zero_bubble(config)


def _zero_bubble(config: Config) -> Problems:
    """What does not go with a backward in two parts, of which one waits."""
    p = config.parallel
    schedule = f"pipeline_schedule={p.pipeline_schedule}"
    if p.data_parallel_sharding_strategy == "optim_grads_params":
        yield ConfigError(
            f"{schedule} with data_parallel_sharding_strategy=optim_grads_params",
            "half of each backward waits, and its layer's weights would be given back meanwhile",
            "--data-parallel-sharding-strategy optim, or --pipeline-schedule Interleaved1F1B",
        )
    if p.recomputed == "full":
        yield ConfigError(
            f"{schedule} with recompute_granularity=full",
            "each half of a backward would compute its blocks again, in all four times instead of once",
            "--recompute-granularity selective, or --pipeline-schedule Interleaved1F1B",
        )


def _replicas(config: Config, data: int) -> Problems:
    """Hybrid sharding over `data` data ranks, 0 where their number is not known."""
    p = config.parallel
    instances = p.num_distributed_optimizer_instances
    if data % instances:
        yield ConfigError(
            f"{data} data ranks cannot be divided into num_distributed_optimizer_instances={instances}",
            "each instance is held by an equal share of the data ranks",
            one_of(divisors(data), instances),
        )
    if instances > 1 and p.data_parallel_sharding_strategy == "no_shard":
        yield ConfigError(
            f"num_distributed_optimizer_instances={instances} with data_parallel_sharding_strategy=no_shard",
            "without sharding every data rank holds all of it",
            "--data-parallel-sharding-strategy optim, or leave the instances out",
        )


def _batches(config: Config, data: int) -> Problems:
    """Global batches, growing ones too, over `data` data ranks; over any number of them if it is 0."""
    t = config.training
    share, of = t.micro_batch_size * max(1, data), f" x {data} data ranks" if data else ""
    sizes = {"global_batch_size": t.global_batch_size}
    if len(t.rampup_batch_size) == 3:
        names = ("START of rampup_batch_size", "INCREMENT of rampup_batch_size")
        sizes |= dict(zip(names, t.rampup_batch_size, strict=False))
    for name, size in sizes.items():
        if size % share:
            yield ConfigError(
                f"{name}={size} is not a multiple of micro_batch_size={t.micro_batch_size}{of}",
                "every data rank runs whole micro batches",
                f"{max(1, round(size / share)) * share}",
            )


def _recomputation(config: Config) -> Problems:
    """What the backward computes again."""
    p = config.parallel
    by_blocks = p.recompute_method != "none" and p.recompute_num_layers > 0
    if p.recompute_activations and p.recompute_granularity == "full":
        yield ConfigError(
            "recompute_activations with recompute_granularity=full",
            "the one asks for the core of attention, the other for whole blocks",
            "one of the two",
        )
    elif p.recomputed == "full" and not by_blocks:
        yield ConfigError(
            f"recompute_granularity=full with recompute_method={p.recompute_method} and "
            f"recompute_num_layers={p.recompute_num_layers}",
            "blocks are recomputed by a method, so many at a time",
            "--recompute-method uniform --recompute-num-layers 1",
        )
    elif p.recomputed != "full" and (p.recompute_method != "none" or p.recompute_num_layers):
        yield ConfigError(
            f"recompute_method={p.recompute_method} and recompute_num_layers="
            f"{p.recompute_num_layers} with recompute_granularity={p.recomputed}",
            "they say how whole blocks are recomputed",
            "--recompute-granularity full, or leave them out",
        )


def _attention_dropout(config: Config) -> Problems:
    """torch's generator draws other masks when a forward is computed again."""
    recomputed = config.parallel.recomputed
    if not config.is_layout_free and recomputed != "none":
        yield ConfigError(
            f"attention_dropout_rng=torch with recompute_granularity={recomputed}",
            "the backward would compute with other masks than the forward",
            "--attention-dropout-rng counter, or --recompute-granularity none",
        )


def _even(layers: int, stages: int) -> str:
    """`--pipeline-layout 8 8 7 7, or `: as even as can be; nothing where there are fewer layers."""
    if stages > layers:
        return ""
    each, more = divmod(layers, stages)
    counts = [each + (stage < more) for stage in range(stages)]
    return f"--pipeline-layout {' '.join(map(str, counts))}, or "


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, ascending."""
    small = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    return sorted({*small, *(number // k for k in small)})


def one_of(values: Iterable[int], given: int, count: int = 8) -> str:
    """`1, 2 or 4`: those next to the given one, ascending."""
    *head, last = sorted(sorted(values, key=lambda value: abs(value - given))[:count])
    return f"{', '.join(map(str, head))} or {last}" if head else str(last)
