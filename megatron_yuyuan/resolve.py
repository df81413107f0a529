"""From what a person gave to what is run: where to start from, which tokenizer, which shape.

Everything here happens before a process group exists, alike on every rank.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from megatron_yuyuan.checkpoint.dcp import find_checkpoint, read_state, require_checkpoint
from megatron_yuyuan.config import CheckpointConfig, Config, ModelConfig, config_fields
from megatron_yuyuan.data import permutation
from megatron_yuyuan.data.tokenizer import Tokenizer, open_tokenizer, read_tokenizer
from megatron_yuyuan.errors import ConfigError, DataError


@dataclass(frozen=True)
class Origin:
    """The checkpoint a run starts from."""

    path: Path
    weights_only: bool
    """Begin a new run with its weights, instead of continuing it."""
    state: dict
    """Its state.json."""


def starting_point(checkpoint: CheckpointConfig) -> Origin | None:
    """Which checkpoint to begin with; None means fresh weights. Raises ConfigError and DataError.

    --load DIR continues what is there, or ends the run. With --finetune its weights begin a new
    run, which a restart continues from --save. Without --load a run continues from --save, or
    begins fresh. --ckpt-step chooses among the checkpoints of --load, or else of --save.
    """
    step, own = checkpoint.ckpt_step or None, None
    if checkpoint.save and step and not checkpoint.load:
        own = require_checkpoint(checkpoint.save, step)
    elif checkpoint.save:
        own = find_checkpoint(checkpoint.save)
    if checkpoint.finetune and own is None:
        if not checkpoint.load:
            raise ConfigError(
                "load is not given",
                "finetuning starts from the weights of another run",
                "--load RUN_DIRECTORY of the pretraining",
            )
        path = require_checkpoint(checkpoint.load, step)
        return Origin(path, True, read_state(path))
    if checkpoint.load and not checkpoint.finetune:
        own = require_checkpoint(checkpoint.load, step)
    if own is None:
        return None
    state = read_state(own)
    if state["data_order"] != permutation.VERSION:
        raise DataError(
            f"{own} read its data in order {state['data_order']}, this code uses "
            f"{permutation.VERSION}",
            "samples would be repeated and left out",
            "--finetune, which begins the data again",
        )
    if not (state["optimizer"] or checkpoint.no_load_optim):
        raise DataError(
            f"{own} holds weights only",
            "a run cannot be continued without its optimizer state",
            "--finetune to begin a new run with its weights, or --no-load-optim",
        )
    return Origin(own, False, state)


def run_tokenizer(config: Config, origin: Origin | None) -> Tokenizer:
    """The tokenizer that is configured, or else the one that came with the checkpoint; it must be
    the checkpoint's."""
    data = config.data
    configured = data.tokenizer_model or data.vocab_file or data.merge_file
    if configured or origin is None:
        tokenizer = open_tokenizer(data)
    else:
        tokenizer = read_tokenizer(origin.path.parent / "tokenizer")
    if origin and origin.state["tokenizer"]["fingerprint"] != tokenizer.fingerprint:
        raise DataError(
            f"{origin.path} was trained with tokenizer {origin.state['tokenizer']['fingerprint']}, not "
            f"{tokenizer.fingerprint}",
            "its embedding belongs to other tokens",
            f"leave the tokenizer out: the checkpoint's own is in {origin.path.parent / 'tokenizer'}",
        )
    return tokenizer


def resolve(config: Config, tokenizer: Tokenizer, origin: Origin | None, ranks: int) -> Config:
    """Fill in what was left at 0: the model's shape, by its checkpoint or the tokenizer, and
    global_batch_size. Raises ConfigError where a checkpoint has another shape."""
    training, parallel, given = config.training, config.parallel, config.model
    model_ranks = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    whole_share = training.micro_batch_size * max(1, ranks // max(1, model_ranks))
    config = config.replace(global_batch_size=training.global_batch_size or whole_share)
    if origin is None:
        config = config.replace(
            vocab_size=given.vocab_size or tokenizer.vocab_size,
            max_position_embeddings=given.max_position_embeddings or config.data.seq_length,
        )
    else:
        config = config.replace(**_shape_of(origin, given))
        if not origin.weights_only:
            _same_samples(config, origin)
    if config.model.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"vocab_size={config.model.vocab_size}, but the tokenizer has {tokenizer.vocab_size}",
            "every token needs a row of the embedding",
            "leave --vocab-size out",
        )
    return config


def _shape_of(origin: Origin, given: ModelConfig) -> dict:
    """The model's shape in a checkpoint. Raises ConfigError where flags or files say otherwise."""
    saved = Config.from_dict({"model": origin.state["config"]["model"]}).model
    fixed = ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size")
    fixed += ("max_position_embeddings", "vocab_size")
    fixed += ("make_vocab_size_divisible_by", "layernorm_epsilon")
    for name in fixed:
        mine, theirs = getattr(given, name), getattr(saved, name)
        if name == "ffn_hidden_size":
            theirs = saved.mlp_size
        if mine not in (getattr(ModelConfig(), name), theirs):
            raise ConfigError(
                f"{name}={mine}, but {origin.path} has {theirs}",
                "the shape of a model is that of its weights",
                f"leave --{name.replace('_', '-')} out",
            )
    return {name: getattr(saved, name) for name in fixed}


def _same_samples(config: Config, origin: Origin) -> None:
    """Refuse to continue a run with other samples: consumed_samples would not name those it has
    read. Raises ConfigError."""
    saved = Config.from_dict(origin.state["config"])
    for name in ("seed", "seq_length", "split"):
        group = config_fields()[name][0]
        old, new = (getattr(getattr(c, group), name) for c in (saved, config))
        if old != new:
            raise ConfigError(
                f"{name}={new}, but {origin.path} was trained with {old}",
                "its place in the data counts samples of another order",
                f"--{name.replace('_', '-')} {old}, or --finetune to begin a new run",
            )
    for name in ("data_path", "train_data_path"):
        old, new = (
            " ".join(Path(word).name for word in getattr(c.data, name)) for c in (saved, config)
        )
        if old != new:
            raise ConfigError(
                f"{name} is {new or 'not given'}, but {origin.path} was trained on {old or 'another'}",
                "its place in the data counts samples of another blend",
                "the same shards and weights in the same order (folders may change), or --finetune",
            )


def resolve_epochs(config: Config, samples: int) -> Config:
    """Turn epochs into train_iters, the last one perhaps not whole."""
    training = config.training
    if not training.epochs:
        return config
    steps = math.ceil(training.epochs * samples / training.global_batch_size)
    return config.replace(train_iters=steps, epochs=0.0)
