"""Which configurations can work: everything that cannot is refused, all at once, before a process
group exists."""

import dataclasses
import math
from collections.abc import Iterator

from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import ConfigError, ConfigErrors

Problems = Iterator[ConfigError]


def validate(config: Config, world_size: int) -> None:
    """Refuse what cannot work on `world_size` ranks. Raises ConfigErrors, naming every problem.

    Called once the shape of the model is known, from flags or from a checkpoint.
    """
    problems = list(_missing(config))
    if not problems:  # the checks below divide by these numbers
        problems = [*_model(config), *_layout(config, world_size), *_course(config)]
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
    m, p, t = config.model, config.parallel, config.training
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
    data = world_size // (tensor * pipeline)
    share = t.micro_batch_size * data
    if t.global_batch_size % share:
        yield ConfigError(
            f"global_batch_size={t.global_batch_size} is not a multiple of "
            f"micro_batch_size={t.micro_batch_size} x {data} data ranks",
            "every data rank runs whole micro batches",
            f"--global-batch-size {max(1, round(t.global_batch_size / share)) * share}",
        )


def _course(config: Config) -> Problems:
    """Length and learning rate of the run."""
    t, o = config.training, config.optimizer
    if bool(t.train_iters) == bool(t.epochs):
        what = "give train_iters or epochs, one of the two"
        yield ConfigError(what, "a run has one end", "--train-iters 1000")
    if o.lr_warmup_iters and o.lr_warmup_fraction:
        what = "give lr_warmup_iters or lr_warmup_fraction, one of the two"
        yield ConfigError(what, "a warm-up has one length", "--lr-warmup-fraction 0.01")
    if o.lr_warmup_fraction >= 1:
        yield ConfigError(
            f"lr_warmup_fraction={o.lr_warmup_fraction}",
            "the warm-up is a part of the decay iterations",
            "--lr-warmup-fraction 0.01",
        )
    for name in ("adam_beta1", "adam_beta2"):
        if getattr(o, name) >= 1:
            why = "a mean that forgets nothing never begins"
            yield ConfigError(f"{name}={getattr(o, name)}", why, "0.9 to 0.999")
    if o.min_lr > o.lr:
        what = f"min_lr={o.min_lr} is above lr={o.lr}"
        yield ConfigError(what, "the rate decays from lr to min_lr", f"--min-lr {o.lr / 10}")


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, ascending."""
    return [k for k in range(1, number + 1) if number % k == 0]


def one_of(values: list[int]) -> str:
    """`1, 2 or 4`, shortened to the eight smallest."""
    *head, last = values if len(values) <= 8 else values[:8]
    return f"{', '.join(map(str, head))} or {last}" if head else str(last)
