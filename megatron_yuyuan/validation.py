"""Which configurations can work: everything that cannot is refused, all at once, before a process
group exists."""

import dataclasses
import math
from collections.abc import Iterator

from megatron_yuyuan.config import Config, TrainingConfig
from megatron_yuyuan.errors import ConfigError, ConfigErrors

Problems = Iterator[ConfigError]


def validate(config: Config, world_size: int) -> None:
    """Refuse what cannot work on `world_size` ranks. Raises ConfigErrors, naming every problem.

    Called once the shape of the model is known, from flags or from a checkpoint.
    """
    problems = list(_missing(config))
    if not problems:  # the checks below divide by these numbers
        problems = [*_model(config), *_layout(config, world_size), *_recomputation(config)]
        problems += [*_length(config), *_learning_rate(config), *_optimizer(config)]
    if problems:
        raise ConfigErrors(problems)


def _missing(config: Config) -> Problems:
    """Values below zero, and zeros where a number is needed."""
    needed = {
        *("num_layers", "hidden_size", "num_attention_heads", "make_vocab_size_divisible_by"),
        *("tensor_model_parallel_size", "pipeline_model_parallel_size"),
        *("micro_batch_size", "seq_length", "log_interval", "distributed_timeout_minutes"),
    }
    for group in dataclasses.fields(config):
        for field in dataclasses.fields(getattr(config, group.name)):
            name, value = field.name, getattr(getattr(config, group.name), field.name)
            if field.type in (int, float) and not value >= 0:
                why = "sizes, rates and intervals are never negative"
                yield ConfigError(f"{name}={value}", why, "0 or more")
            elif name in needed and value == 0:
                flag = f"--{name.replace('_', '-')} N, or --config FILE.toml"
                yield ConfigError(f"{name} is not given", "nothing can be built without it", flag)


def _model(config: Config) -> Problems:
    """The shape of the model in itself."""
    m, length = config.model, config.data.seq_length
    if m.hidden_size % m.num_attention_heads:
        yield ConfigError(
            f"hidden_size={m.hidden_size} is not a multiple of "
            f"num_attention_heads={m.num_attention_heads}",
            "heads share the width equally",
            f"num_attention_heads {one_of(divisors(m.hidden_size))}",
        )
    if m.max_position_embeddings and length > m.max_position_embeddings:
        yield ConfigError(
            f"seq_length={length} exceeds max_position_embeddings={m.max_position_embeddings}",
            "every token needs a row of the position table",
            f"--seq-length {m.max_position_embeddings}",
        )
    for name in ("hidden_dropout", "attention_dropout"):
        if getattr(m, name) >= 1:
            why = "nothing would be left to learn from"
            yield ConfigError(f"{name}={getattr(m, name)}", why, "0 to 0.9")


def _layout(config: Config, world_size: int) -> Problems:
    """The model over the ranks."""
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
                one_of(divisors(math.gcd(*shares.values()))),
            )
    if pipeline > m.num_layers:
        yield ConfigError(
            f"num_layers={m.num_layers} cannot be divided over "
            f"pipeline_model_parallel_size={pipeline}",
            "a stage holds one layer at least",
            f"{m.num_layers} or fewer stages",
        )
    if world_size % (tensor * pipeline):
        yield ConfigError(
            f"{world_size} ranks cannot be divided into tensor {tensor} x pipeline {pipeline}",
            "the number of ranks is tensor x pipeline x data",
            f"{-(-world_size // (tensor * pipeline)) * tensor * pipeline} ranks, or another layout",
        )
        return
    yield from _batches(config, world_size // (tensor * pipeline))


def _batches(config: Config, data: int) -> Problems:
    """Global batches, growing ones too, over `data` data ranks."""
    t = config.training
    share = t.micro_batch_size * data
    sizes = {"global_batch_size": t.global_batch_size}
    if len(t.rampup_batch_size) == 3:
        names = ("START of rampup_batch_size", "INCREMENT of rampup_batch_size")
        sizes |= dict(zip(names, t.rampup_batch_size, strict=False))
    for name, size in sizes.items():
        if size % share:
            yield ConfigError(
                f"{name}={size} is not a multiple of micro_batch_size={t.micro_batch_size} x {data} "
                "data ranks",
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


def _length(config: Config) -> Problems:
    """Where the run ends, and how its batches grow on the way."""
    t = config.training
    if sum(map(bool, (t.train_iters, t.train_samples, t.epochs))) != 1:
        what = "give train_iters, train_samples or epochs, one of the three"
        yield ConfigError(what, "a run has one end", "--train-iters 1000")
    if not t.rampup_batch_size:
        first = t.global_batch_size
    elif len(t.rampup_batch_size) != 3 or min(t.rampup_batch_size) < 1:
        what = f"rampup_batch_size={' '.join(map(str, t.rampup_batch_size))}"
        why = "it is the first size, what is added, and the samples until global_batch_size"
        yield ConfigError(what, why, "three numbers above 0: --rampup-batch-size 16 16 100000")
        return
    else:
        yield from _ramp(config)
        first = t.rampup_batch_size[0]
    if t.train_samples and t.train_samples < first:
        yield ConfigError(
            f"train_samples={t.train_samples} are fewer than the {first} of the first batch",
            "no step would be taken",
            f"--train-samples {first}",
        )


def _ramp(config: Config) -> Problems:
    """A batch that grows, of three positive numbers."""
    t = config.training
    start, increment, _ = t.rampup_batch_size
    growth = t.global_batch_size - start
    if growth <= 0:
        yield ConfigError(
            f"rampup_batch_size starts with {start}, and global_batch_size={t.global_batch_size}",
            "the batch grows up to global_batch_size",
            "a smaller START, or leave it out",
        )
    elif growth % increment:
        yield ConfigError(
            f"rampup_batch_size grows from {start} by {increment}, and never is "
            f"global_batch_size={t.global_batch_size}",
            "the increments lead to global_batch_size exactly",
            f"INCREMENT {one_of(divisors(growth))}",
        )
    if t.train_iters:
        yield ConfigError(
            "rampup_batch_size and train_iters are given",
            "with growing batches a run is counted in samples",
            "--train-samples N or --epochs N in place of --train-iters",
        )


def _learning_rate(config: Config) -> Problems:
    """The course of the learning rate."""
    t, o = config.training, config.optimizer
    counted, other = ("samples", "iters") if counts_samples(t) else ("iters", "samples")
    for part in ("decay", "warmup", "wsd_decay"):
        name = f"lr_{part}_{other}"
        if getattr(o, name):
            why = "the course is counted in samples with train_samples or rampup_batch_size, and only then"
            yield ConfigError(f"{name}={getattr(o, name)}", why, f"lr_{part}_{counted}")
    warmups = (o.lr_warmup_iters, o.lr_warmup_samples, o.lr_warmup_fraction)
    if sum(map(bool, warmups)) > 1:
        what = f"give lr_warmup_{counted} or lr_warmup_fraction, one of the two"
        yield ConfigError(what, "a warm-up has one length", "--lr-warmup-fraction 0.01")
    if o.lr_warmup_fraction >= 1:
        yield ConfigError(
            f"lr_warmup_fraction={o.lr_warmup_fraction}",
            "the warm-up is a part of the decay",
            "--lr-warmup-fraction 0.01",
        )
    if o.lr_decay_style == "inverse-square-root" and not any(warmups):
        why = "the rate falls as the root of (warm-up / position)"
        what = "lr_decay_style=inverse-square-root without a warm-up"
        yield ConfigError(what, why, "--lr-warmup-fraction 0.01")
    if (o.lr_decay_style == "WSD") != bool(o.lr_wsd_decay_iters or o.lr_wsd_decay_samples):
        what = f"give lr_decay_style WSD and lr_wsd_decay_{counted} together"
        yield ConfigError(
            what, "WSD anneals at its end, and no other style does", "both, or neither"
        )
    if o.min_lr > o.lr:
        what = f"min_lr={o.min_lr} is above lr={o.lr}"
        yield ConfigError(what, "the rate decays from lr to min_lr", f"--min-lr {o.lr / 10}")


def _optimizer(config: Config) -> Problems:
    """AdamW's constants."""
    for name in ("adam_beta1", "adam_beta2"):
        value = getattr(config.optimizer, name)
        if value >= 1:
            why = "a mean that forgets nothing never begins"
            yield ConfigError(f"{name}={value}", why, "0.9 to 0.999")


def counts_samples(training: TrainingConfig) -> bool:
    """Whether a run and the course of its learning rate are counted in samples, not iterations."""
    return bool(training.train_samples or training.rampup_batch_size)


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, ascending."""
    return [k for k in range(1, number + 1) if number % k == 0]


def one_of(values: list[int]) -> str:
    """`1, 2 or 4`, shortened to the eight smallest."""
    *head, last = values if len(values) <= 8 else values[:8]
    return f"{', '.join(map(str, head))} or {last}" if head else str(last)
