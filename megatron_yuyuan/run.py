"""The whole program on one page: pretraining and finetuning are the same run over two kinds of
samples.

    configuration -> tokenizer -> where to start from -> samples -> mesh -> divided model -> steps

What can be wrong with flags, configuration, tokenizer and shards is found before a process group exists.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

from megatron_yuyuan.checkpoint.dcp import (
    describe_run,
    find_checkpoint,
    load_tensors,
    read_state,
    require_checkpoint,
    save_checkpoint,
)
from megatron_yuyuan.config import CheckpointConfig, Config, ModelConfig, config_fields
from megatron_yuyuan.data import permutation
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.data.gpt_dataset import GPTDataset, split_documents
from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.loader import Dataset
from megatron_yuyuan.data.qa_dataset import QADataset
from megatron_yuyuan.data.tokenizer import Tokenizer, open_tokenizer
from megatron_yuyuan.errors import ConfigError, DataError
from megatron_yuyuan.log import Log
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.parallel.plan import build_stages
from megatron_yuyuan.train.loop import Trainer, train
from megatron_yuyuan.train.optimizer import build_optimizer
from megatron_yuyuan.train.state import TrainState
from megatron_yuyuan.validation import validate


def pretrain(config: Config) -> None:
    """Train on windows of a token stream (`torchrun pretrain_gpt.py`)."""
    run(config, text_samples)


def finetune(config: Config) -> None:
    """Train on questions and answers (`torchrun finetune_qa.py`), from the weights of --load."""
    run(config.replace(finetune=True), question_samples)


def run(config: Config, samples) -> None:
    """Assemble a run and take its steps. Raises YuyuanError for what a person must change."""
    ranks = mesh_module.world_size()
    origin = starting_point(config.checkpoint)
    tokenizer = run_tokenizer(config, origin)
    config = resolve(config, tokenizer, origin, ranks)
    validate(config, ranks)
    training_set, validation_set = samples(config, tokenizer)
    config = resolve_epochs(config, len(training_set))

    mesh = mesh_module.start(config.parallel)
    try:
        log = Log(config.checkpoint.save, mesh.is_main)
        introduce(config, mesh, training_set, validation_set, log)
        stages = build_stages(config, mesh)
        state = TrainState(stages, build_optimizer(stages, config.optimizer), mesh)
        if origin is not None:
            load_into(state, origin, config.checkpoint, log)
        if config.checkpoint.save and mesh.is_main:  # only now: a failed start leaves nothing
            save_run_files(config, tokenizer)
        if state.iteration or log.has_history:
            log.event("restart", iteration=state.iteration)
        train(
            Trainer(config, state),
            training_set,
            validation_set,
            lambda: save(config, state, tokenizer, log),
            log,
        )
    finally:
        mesh_module.stop()


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
    if checkpoint.save:
        chosen = step and not checkpoint.load
        own = (require_checkpoint if chosen else find_checkpoint)(
            checkpoint.save, step if chosen else None
        )
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
        tokenizer = Tokenizer.from_file(origin.path.parent / "tokenizer")
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


def resolve_epochs(config: Config, samples: int) -> Config:
    """Turn epochs into train_iters, the last one perhaps not whole."""
    training = config.training
    if not training.epochs:
        return config
    steps = math.ceil(training.epochs * samples / training.global_batch_size)
    return config.replace(train_iters=steps, epochs=0.0)


def text_samples(config: Config, tokenizer: Tokenizer) -> tuple[Dataset, Dataset | None]:
    """Training and validation windows of data_path, or of train_data_path and valid_data_path."""
    data, seed = config.data, config.training.seed
    if not data.data_path:
        train, valid = open_shards(config, tokenizer)
        valid_set = GPTDataset(valid, data.seq_length, None) if valid else None
        return GPTDataset(train, data.seq_length, seed), valid_set
    if data.train_data_path or data.valid_data_path:
        raise ConfigError(
            "data_path and train_data_path or valid_data_path are given",
            "either one shard is divided by split, or each part has its own",
            "leave one of them out",
        )
    shard = open_shard(data.data_path, "data_path", tokenizer)
    train, valid, _ = split_documents(shard.num_documents, data.split)
    valid_set = GPTDataset(shard, data.seq_length, None, valid) if valid else None
    return GPTDataset(shard, data.seq_length, seed, train), valid_set


def question_samples(config: Config, tokenizer: Tokenizer) -> tuple[Dataset, Dataset | None]:
    """Training and validation pairs of train_data_path and valid_data_path."""
    if config.data.data_path:
        raise ConfigError(
            "data_path is given",
            "questions are divided when they are preprocessed, by groups that share an answer's topic",
            "--train-data-path PREFIX_train_qa_document --valid-data-path PREFIX_valid_qa_document",
        )
    train, valid = open_shards(config, tokenizer)
    common = config.data.seq_length, tokenizer.eod, config.training.seed
    return QADataset(train, *common), QADataset(valid, *common) if valid else None


def open_shards(config: Config, tokenizer: Tokenizer):
    """The shards of train_data_path and, if it is given, valid_data_path."""
    train = open_shard(config.data.train_data_path, "train_data_path", tokenizer)
    if not config.data.valid_data_path:
        return train, None
    return train, open_shard(config.data.valid_data_path, "valid_data_path", tokenizer)


def open_shard(prefixes: tuple[str, ...], flag: str, tokenizer: Tokenizer) -> IndexedDataset:
    """The one shard a flag names, checked against the tokenizer. Raises ConfigError and
    DataError."""
    if len(prefixes) != 1:
        what = "several shards are not yet supported" if prefixes else "no shard"
        raise ConfigError(
            f"{flag}: {what}",
            "a run reads one token stream",
            f"--{flag.replace('_', '-')} PREFIX, as tools/preprocess_data.py printed it",
        )
    shard = IndexedDataset(prefixes[0])
    shard.check_vocabulary(tokenizer.fingerprint, tokenizer.vocab_size)
    return shard


def load_into(state: TrainState, origin: Origin, checkpoint: CheckpointConfig, log: Log) -> None:
    """Fill a state from a checkpoint of any layout. Raises DataError."""
    with_moments = not (origin.weights_only or checkpoint.no_load_optim)
    load_tensors(origin.path, state.tensors(with_moments))
    if not origin.weights_only:
        saved = origin.state
        steps = saved["optimizer_steps"] if with_moments else 0
        state.continue_after(saved["iteration"], saved["consumed_samples"], steps)
    log.line(f"{'weights of' if origin.weights_only else 'continuing'} {origin.path}")


def save(config: Config, state: TrainState, tokenizer: Tokenizer, log: Log) -> None:
    """Write a checkpoint if the run has a place for it."""
    if not config.checkpoint.save:
        return
    begun = time.perf_counter()
    path = save_checkpoint(
        config.checkpoint.save,
        state.iteration,
        state.tensors(),
        describe_run(config, tokenizer, state.consumed_samples, state.optimizer_steps),
    )
    seconds = time.perf_counter() - begun
    log.event("save", iteration=state.iteration, path=str(path), seconds=seconds)
    log.line(f"saved {path} in {seconds:.1f} s")


def save_run_files(config: Config, tokenizer: Tokenizer) -> None:
    """Beside the checkpoints: the resolved configuration and the tokenizer."""
    directory = Path(config.checkpoint.save)
    with AtomicFiles() as files:
        files.open(directory / "config.toml").write(config.to_toml().encode())
    kept = directory / "tokenizer"
    if not kept.exists() or Tokenizer.from_file(kept).fingerprint != tokenizer.fingerprint:
        tokenizer.save(kept)


def introduce(
    config: Config, mesh: Mesh, training_set: Dataset, validation_set: Dataset | None, log: Log
) -> None:
    """Say what is about to happen."""
    model, training, length = config.model, config.training, config.data.seq_length
    log.line(
        f"model: {model.num_parameters:,} parameters, vocabulary {model.vocab_size} padded to "
        f"{model.padded_vocab_size}"
    )
    log.line(f"layout: {mesh.describe()}")
    epochs = training.train_iters * training.global_batch_size / len(training_set)
    log.line(
        f"data: {len(training_set):,} samples of {length} tokens; {training.train_iters} steps of "
        f"{training.global_batch_size} samples are {epochs:.2f} epochs; validation on "
        f"{f'{len(validation_set):,} samples' if validation_set else 'nothing'}"
    )
