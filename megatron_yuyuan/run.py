"""The whole program on one page: pretraining and finetuning are the same run over two kinds of
samples.

    configuration -> tokenizer -> where to start from -> samples -> mesh -> divided model -> steps

What can be wrong with flags, configuration, tokenizer and shards is found before a process group exists.
"""

import time
from pathlib import Path

from megatron_yuyuan.checkpoint.dcp import describe_run, load_tensors, save_checkpoint
from megatron_yuyuan.config import CheckpointConfig, Config
from megatron_yuyuan.config_toml import to_toml
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.data.loader import Dataset
from megatron_yuyuan.data.tokenizer import Tokenizer, read_tokenizer
from megatron_yuyuan.exit_report import exit_reported, forget_exit, stopped
from megatron_yuyuan.log import Log
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.parallel.plan import build_stages
from megatron_yuyuan.resolve import (
    Origin,
    accept_changes,
    resolve,
    resolve_length,
    run_tokenizer,
    starting_point,
)
from megatron_yuyuan.samples import borders, introduce_shards, question_samples, text_samples
from megatron_yuyuan.train.loop import Trainer, train
from megatron_yuyuan.train.optimizer import build_optimizer
from megatron_yuyuan.train.schedule import train_iterations
from megatron_yuyuan.train.state import TrainState
from megatron_yuyuan.train.stopping import Stopping
from megatron_yuyuan.validation import validate


def pretrain(config: Config) -> None:
    """Train on windows of a token stream (`torchrun pretrain_gpt.py`)."""
    run(config, text_samples)


def finetune(config: Config) -> None:
    """Train on questions and answers (`torchrun finetune_qa.py`), from the weights of --load."""
    run(config.replace(finetune=True), question_samples)


def run(config: Config, samples) -> None:
    """Assemble a run and take its steps. Raises YuyuanError for what a person must change, and
    StoppedError if it was asked to stop."""
    stopping = Stopping(config.training)
    forget_exit(config.checkpoint)
    ranks = mesh_module.world_size()
    origin = starting_point(config.checkpoint)
    tokenizer = run_tokenizer(config, origin)
    config = resolve(config, tokenizer, origin, ranks)
    validate(config, ranks)
    training_set, validation_set = samples(config, tokenizer)
    config = resolve_length(config, len(training_set))
    overridden = accept_changes(config, origin)

    mesh = mesh_module.start(config.parallel)
    try:
        log = Log(config.checkpoint.save, mesh.is_main)
        introduce(config, mesh, training_set, validation_set, log)
        stages = build_stages(config, mesh)
        state = TrainState(stages, build_optimizer(stages, config.optimizer), mesh)
        if origin is not None:
            load_into(state, origin, config.checkpoint, log)
        if overridden:
            log.line(f"warning: overridden: {'; '.join(overridden)}")
        if config.checkpoint.save and mesh.is_main:  # only now: a failed start leaves nothing
            save_run_files(config, tokenizer)
        if state.iteration or log.has_history:
            log.event("restart", iteration=state.iteration)
        with exit_reported(config.checkpoint, state):
            stop = train(
                Trainer(config, state, borders(config, tokenizer)),
                training_set,
                validation_set,
                lambda: save(config, state, tokenizer, log),
                stopping,
                log,
            )
            if stop is not None:
                raise stopped(stop, config.checkpoint, state)
    finally:
        mesh_module.stop()


def load_into(state: TrainState, origin: Origin, checkpoint: CheckpointConfig, log: Log) -> None:
    """Fill a state from a checkpoint of any layout. Raises DataError."""
    with_moments = not (origin.weights_only or checkpoint.no_load_optim)
    load_tensors(origin.path, state.tensors(with_moments))
    if not origin.weights_only:
        saved = origin.state
        steps = saved["optimizer_steps"] if with_moments else 0
        state.continue_after(saved["iteration"], saved["consumed_samples"], steps)
        state.recall(saved)
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
        describe_run(config, tokenizer, state.consumed_samples, state.optimizer_steps)
        | state.history(),
    )
    seconds = time.perf_counter() - begun
    log.event("save", iteration=state.iteration, path=str(path), seconds=seconds)
    log.line(f"saved {path} in {seconds:.1f} s")


def save_run_files(config: Config, tokenizer: Tokenizer) -> None:
    """Beside the checkpoints: the resolved configuration and the tokenizer."""
    directory = Path(config.checkpoint.save)
    with AtomicFiles() as files:
        files.open(directory / "config.toml").write(to_toml(config).encode())
    kept = directory / "tokenizer"
    if not kept.exists() or read_tokenizer(kept).fingerprint != tokenizer.fingerprint:
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
    steps, size = train_iterations(training), f"{training.global_batch_size} samples"
    total = training.train_samples or steps * training.global_batch_size
    if training.rampup_batch_size:
        size = f"{training.rampup_batch_size[0]} to {size}"
    log.line(
        f"data: {len(training_set):,} samples of {length} tokens; {steps} steps of {size} are "
        f"{total / len(training_set):.2f} epochs; validation on "
        f"{f'{len(validation_set):,} samples' if validation_set else 'nothing'}"
    )
    introduce_shards(training_set, validation_set, total, log)
    place, interval = config.checkpoint.save, config.checkpoint.save_interval
    often = f"every {interval} steps and at the end" if interval else "at the end"
    log.line(f"saving: {f'{often} to {place}' if place else 'nothing, there is no --save'}")
