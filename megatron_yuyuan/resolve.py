"""From what a person gave to what is run: which tokenizer, which shape, how long; and what may not differ.

Everything here happens before a process group exists, alike on every rank.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from megatron_yuyuan.checkpoint.newest import newest_before
from megatron_yuyuan.config import Config, ModelConfig, config_fields, flag_of
from megatron_yuyuan.config_toml import from_dict
from megatron_yuyuan.data.indexed_dataset import prefix_of
from megatron_yuyuan.data.loader import Dataset
from megatron_yuyuan.data.tokenizer import Tokenizer, open_tokenizer, read_tokenizer
from megatron_yuyuan.errors import ConfigError, DamagedError, DataError
from megatron_yuyuan.origin import Origin, continued
from megatron_yuyuan.train.schedule import whole_batches

Samples = Callable[[Config, Tokenizer], tuple[Dataset, Dataset | None]]
"""Training and validation set of a configuration: see `samples.py`."""


def fall_back(origin: Origin, config: Config, error: DamagedError) -> Origin:
    """The newest whole checkpoint before one whose tensors were found to be damaged, for a run that is
    continued. Raises `error` if the checkpoint was named (--ckpt-step), under --strict, for a new run, or if no
    older one is whole; and ConfigError where the older one was trained with other settings."""
    checkpoint = config.checkpoint
    if origin.weights_only or checkpoint.ckpt_step or checkpoint.strict:
        raise error
    try:
        found = newest_before(origin.path)
    except DamagedError:
        raise error from None
    if found.path is None:
        raise error
    older = continued(found.path, found.faults, checkpoint)
    compare_with_checkpoint(config, older)
    return replace(older, passed_over=(*origin.passed_over, error.what, *older.passed_over))


def run_tokenizer(config: Config, origin: Origin | None) -> Tokenizer:
    """The tokenizer that is configured, or else the one that came with the checkpoint; it must be
    the checkpoint's."""
    data = config.data
    configured = data.tokenizer_model or data.vocab_file or data.merge_file
    if configured or origin is None or origin.tokenizer is None:
        tokenizer = open_tokenizer(data)
    else:
        tokenizer = read_tokenizer(origin.tokenizer)
    theirs = origin.state["tokenizer"] if origin else None
    if origin and theirs and theirs["fingerprint"] != tokenizer.fingerprint:
        raise DataError(
            f"{origin.path} was trained with tokenizer {theirs['fingerprint']}, not "
            f"{tokenizer.fingerprint}",
            "its embedding belongs to other tokens",
            f"leave the tokenizer out: the checkpoint's own is in {origin.tokenizer}",
        )
    return tokenizer


def resolve(config: Config, tokens: int, origin: Origin | None, ranks: int) -> Config:
    """Fill in what was left at 0: the model's shape, by its checkpoint or the number of the tokenizer's
    tokens, and global_batch_size. Raises ConfigError where a checkpoint has another shape."""
    given = config.model
    config = config.replace(global_batch_size=_global_batch_size(config, origin, ranks))
    _require_base(origin, given)
    if origin is None:
        config = config.replace(
            vocab_size=given.vocab_size or tokens,
            max_position_embeddings=given.max_position_embeddings or config.data.seq_length,
        )
    else:
        config = config.replace(**_shape_of(origin, given))
    if config.model.vocab_size < tokens:
        raise ConfigError(
            f"vocab_size={config.model.vocab_size}, but the tokenizer has {tokens}",
            "every token needs a row of the embedding",
            "leave --vocab-size out, or the tokenizer of the model that the run starts from",
        )
    return config


def _global_batch_size(config: Config, origin: Origin | None, ranks: int) -> int:
    """As given; else that of the run that is continued, on whatever layout; else one micro batch on each
    data rank."""
    training, parallel, saved = config.training, config.parallel, 0
    if origin is not None and not origin.weights_only:
        saved = from_dict(origin.state["config"]).training.global_batch_size
    data_ranks = parallel.data_ranks(ranks) if parallel.model_ranks > 0 else 1
    whole_share = training.micro_batch_size * max(1, data_ranks)
    return training.global_batch_size or saved or whole_share


def _require_base(origin: Origin | None, given: ModelConfig) -> None:
    """Raises ConfigError where LoRA would freeze weights that nothing has trained, or where a new run
    would begin with the matrices of a run but without their factors."""
    if origin is None and given.lora_rank:
        raise ConfigError(
            f"lora_rank={given.lora_rank}, but there is nothing to start from",
            "fresh weights would be frozen as they were drawn",
            "--load RUN --finetune or --load hf:DIR, or leave it out",
        )
    saved = from_dict({"model": origin.state["config"]["model"]}).model if origin else given
    if origin and origin.weights_only and saved.lora_rank:
        raise ConfigError(
            f"{origin.path} has factors of LoRA (lora_rank={saved.lora_rank}) beside its matrices",
            "a new run would begin with the matrices without them",
            f"tools/convert_checkpoint.py --to hf --load {origin.path.parent} --save DIR, which merges "
            "them, then --load hf:DIR",
        )


def _shape_of(origin: Origin, given: ModelConfig) -> dict:
    """The model's shape in a checkpoint. Raises ConfigError where flags or files say otherwise."""
    saved = from_dict({"model": origin.state["config"]["model"]}).model
    fixed = ["num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size"]
    fixed += ["max_position_embeddings", "vocab_size"]
    fixed += ["make_vocab_size_divisible_by", "layernorm_epsilon"]
    for name in fixed:
        mine, theirs = getattr(given, name), getattr(saved, name)
        if name == "ffn_hidden_size":
            theirs = saved.mlp_size
        if mine not in (getattr(ModelConfig(), name), theirs):
            raise ConfigError(
                f"{name}={mine}, but {origin.path} has {theirs}",
                "the shape of a model is that of its weights",
                f"leave {flag_of(name)} out",
            )
    return {name: getattr(saved, name) for name in fixed}


def open_samples(
    config: Config, tokenizer: Tokenizer, samples: Samples
) -> tuple[Config, Dataset, Dataset | None]:
    """The training set, the validation set if there is one, and the configuration with a run's length.
    Raises ConfigError and DataError."""
    training_set, validation_set = samples(config, tokenizer)
    require_validation(config, validation_set)
    return resolve_length(config, len(training_set)), training_set, validation_set


def resolve_length(config: Config, samples: int) -> Config:
    """Turn epochs over so many samples into train_iters, or into train_samples if the batch grows.
    The last batch goes on into the next epoch."""
    training = config.training
    if not training.epochs:
        return config
    total = math.ceil(training.epochs * samples)
    if training.rampup_batch_size:
        return config.replace(train_samples=whole_batches(total, training), epochs=0.0)
    return config.replace(train_iters=math.ceil(total / training.global_batch_size), epochs=0.0)


def require_validation(config: Config, samples: Dataset | None) -> None:
    """Raises ConfigError where the best checkpoints are to be kept and nothing judges them."""
    if config.checkpoint.keep_best and samples is None:
        raise ConfigError(
            f"keep_best={config.checkpoint.keep_best}, but there is nothing to validate on",
            "the best are those of lowest validation loss",
            "--valid-data-path, a --split with a second part, or --keep-last",
        )


CHANGE_NOTHING = frozenset(
    """
    init_method_std attention_impl attention_backend
    valid_data_path tokenizer_type vocab_file merge_file tokenizer_model
    micro_batch_size train_iters train_samples epochs eval_interval eval_iters log_interval
    initial_loss_scale max_skipped_iterations max_rollbacks verify_every deterministic_mode
    exit_interval exit_duration_in_mins
    """.split()
)
"""Settings that may differ when a run is continued. Any other of [data], [model], [optimizer] and
[training] changes its training; none of [parallel] and [checkpoint] does."""
OF_THE_LAYOUT = frozenset(
    """
    micro_batch_size tensor_model_parallel_size pipeline_model_parallel_size sequence_parallel
    pipeline_schedule num_virtual_stages_per_pipeline_rank pipeline_layout
    """.split()
)
"""Settings that change the masks of a generator that each rank has of its own."""
OF_VALIDATION = frozenset({"valid_data_path", "eval_iters"})
"""Settings that change what keep_best compares."""


def of_every_rank(
    config: Config, origin: Origin | None, tokenizer: Tokenizer, samples: int
) -> dict[str, str]:
    """{name: value as text} of what must be the same on every rank: the settings (of a path its last
    part), the checkpoint that it starts from, the tokenizer and the number of samples."""
    alike = {
        name: _as_text(value, lambda word: Path(word).name)
        for name, value in config.values().items()
    }
    alike["the checkpoint to start from"] = origin.path.name if origin else "none"
    alike["the tokenizer's fingerprint"] = tokenizer.fingerprint
    alike["the number of samples"] = str(samples)
    return alike


def compare_with_checkpoint(
    config: Config, origin: Origin | None, ranks: int = 0, data: Sequence[str] = ()
) -> list[str]:
    """Compare the resolved settings of a run with those of the checkpoint that it continues.

    ranks, data: of the run, and the fingerprints of the shards that it learns from; not compared where
    they are not given, or an older checkpoint does not know them.

    Raises ConfigError, naming every setting that would change the training silently, unless
    --override; returns what is overridden.
    """
    if origin is None or origin.weights_only:
        return []
    saved = from_dict(origin.state["config"])
    more = frozenset() if config.is_layout_free else OF_THE_LAYOUT
    more |= OF_VALIDATION if config.checkpoint.keep_best else frozenset()
    old, new = _what_matters(saved, more), _what_matters(config, more)
    changes = [f"{name} was {old[name]}, is {new[name]}" for name in new if old[name] != new[name]]
    before = origin.state.get("ranks", ranks)
    if ranks and before != ranks and not config.is_layout_free:
        changes.append(f"the number of ranks was {before}, is {ranks}")
    known = origin.state.get("data")
    if isinstance(known, list) and len(known) == len(data):  # else data_path has changed
        changes += [
            f"the content of shard {number} was {str(was)[:12]}, is {found[:12]} (sha256)"
            for number, (was, found) in enumerate(zip(known, data, strict=True), 1)
            if was != found
        ]
    if changes and not config.checkpoint.override:
        raise ConfigError(
            f"{origin.path} was trained with other settings: {'; '.join(changes)}",
            "going on with these would change the training, or read other samples, silently",
            f"the settings as they were; {_decay(old, new, config)}--override to go on with these; "
            + _anew(origin, config),
        )
    return changes


def _decay(old: dict[str, str], new: dict[str, str], config: Config) -> str:
    """How a run is made longer whose learning rate decays over its length; empty for any other change."""
    for name in ("lr_decay_iters", "lr_decay_samples"):
        if not getattr(config.optimizer, name) and int(new[name]) > int(old[name]) > 0:
            flag = f"{flag_of(name)} {old[name]}"
            return f"{flag} to train longer and let the learning rate end as before; "
    return ""


def _anew(origin: Origin, config: Config) -> str:
    """How a new run is begun in place of one that is continued."""
    save = config.checkpoint.save
    if save and origin.path.parent.absolute() == Path(save).absolute():
        return f"another --save to begin a new run: {save} holds this one"
    return "--finetune to begin a new run with its weights"


def _what_matters(config: Config, more: frozenset[str]) -> dict[str, str]:
    """{name: value as text} of every setting that decides what a run learns and when, and of `more`."""
    groups, owners = ("model", "data", "optimizer", "training"), config_fields()
    values = {
        name: value
        for name, value in config.values().items()
        if name in more or (owners[name][0] in groups and name not in CHANGE_NOTHING)
    }
    paths = {"data_path", "train_data_path", "valid_data_path"}
    for name in paths & values.keys():  # folders may change
        values[name] = tuple(prefix_of(Path(word).name) for word in values[name])
    optimizer, training = config.optimizer, config.training
    if optimizer.lr_decay_style == "constant" and not optimizer.lr_warmup_fraction:
        values["lr_decay_iters"] = values["lr_decay_samples"] = 0
    elif training.train_samples:
        values["lr_decay_samples"] = optimizer.lr_decay_samples or training.train_samples
    else:
        values["lr_decay_iters"] = optimizer.lr_decay_iters or training.train_iters
    return {name: _as_text(value) for name, value in values.items()}


def _as_text(value: object, shorten: Callable[[str], str] = str) -> str:
    """A setting as people read it."""
    words = value if isinstance(value, tuple) else (value,)
    return " ".join(shorten(str(word)) for word in words) or "not given"
