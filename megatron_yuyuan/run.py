"""The whole program on one page: pretraining and finetuning are the same run over two kinds of
samples.

    configuration -> tokenizer -> where to start from -> samples -> mesh -> divided model -> steps

What can be wrong with flags, configuration, tokenizer and shards is found before a process group exists.
"""

from contextlib import closing
from pathlib import Path

from megatron_yuyuan.checkpoint.retention import best_checkpoint
from megatron_yuyuan.checkpoint.saver import build_saver
from megatron_yuyuan.config import CheckpointConfig, Config
from megatron_yuyuan.config_toml import to_toml
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.data.tokenizer import Tokenizer, read_tokenizer
from megatron_yuyuan.exit_report import exit_reported, forget_exit, stopped
from megatron_yuyuan.introduction import introduce_plan, introduce_state
from megatron_yuyuan.kernels import Kernels
from megatron_yuyuan.kernels.choice import choose
from megatron_yuyuan.log import Log, MegatronLines
from megatron_yuyuan.model.attention_backend import describe_attention
from megatron_yuyuan.panel import Panel, on_terminal
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.parallel.data import compute_dtype
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.resolve import (
    Origin,
    accept_changes,
    require_validation,
    resolve,
    resolve_length,
    run_tokenizer,
    starting_point,
)
from megatron_yuyuan.samples import borders, introduce_example, question_samples, text_samples
from megatron_yuyuan.train.loop import train
from megatron_yuyuan.train.profile import choose_trainer
from megatron_yuyuan.train.schedule import train_iterations
from megatron_yuyuan.train.state import TrainState, build_state
from megatron_yuyuan.train.stopping import Stopping
from megatron_yuyuan.validation import validate
from megatron_yuyuan.writers import TensorBoard, WeightsAndBiases, require_extras


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
    require_extras(config.logging)
    training_set, validation_set = samples(config, tokenizer)
    require_validation(config, validation_set)
    config = resolve_length(config, len(training_set))
    overridden = accept_changes(config, origin)

    mesh = mesh_module.start(config.parallel)
    try:
        log = open_log(config, mesh)
        introduce_plan(config, mesh, training_set, validation_set, log)
        introduce_example(training_set, tokenizer, log)
        kernels, chosen = choose_alike(config.parallel.kernels, mesh)
        attention = describe_attention(config.model, compute_dtype(config.training), mesh.device)
        log.line(f"kernels: {chosen}; attention: {attention}")
        state = build_state(config, mesh, kernels)
        saver = build_saver(config, state, tokenizer, origin.path if origin else None, log)
        saver.require_place()
        if origin is not None:
            load_into(state, origin, config.checkpoint, log)
        if overridden:
            log.line(f"warning: overridden: {'; '.join(overridden)}")
        if config.checkpoint.save and mesh.is_main:  # only now: a failed start leaves nothing
            save_run_files(config, tokenizer)
        if state.iteration or log.has_history:
            log.event("restart", iteration=state.iteration)
        introduce_state(config, state, log)
        trainer = choose_trainer(config, state, borders(config, tokenizer))
        with exit_reported(config.checkpoint, state), log:
            with saver, closing(trainer):
                stop = train(trainer, training_set, validation_set, saver, stopping, log)
            if stop is not None:
                raise stopped(stop, config.checkpoint, state)
            say_best(config.checkpoint, state.iteration, log)
    finally:
        mesh_module.stop()


def choose_alike(name: str, mesh: Mesh) -> tuple[Kernels, str]:
    """The kernels of --kernels, the same on every rank, and what to say of them. Raises KernelsError."""
    kernels, chosen = choose(name, mesh.device)
    if name == "auto" and not mesh.all_agree(kernels != Kernels()) and kernels != Kernels():
        return Kernels(), "reference, because not every rank can build the CUDA kernels"
    return kernels, chosen


def load_into(state: TrainState, origin: Origin, checkpoint: CheckpointConfig, log: Log) -> None:
    """Fill a state from a checkpoint of any layout. Raises DataError."""
    with_moments = not checkpoint.no_load_optim
    if origin.weights_only:
        state.begin_with(origin.load)
    else:
        state.fill(origin.load, with_moments)
        saved = origin.state
        steps = saved["optimizer_steps"] if with_moments else 0
        state.continue_after(saved["iteration"], saved["consumed_samples"], steps)
        state.recall(saved)
    log.line(f"{'weights of' if origin.weights_only else 'continuing'} {origin.path}")


def say_best(checkpoint: CheckpointConfig, iteration: int, log: Log) -> None:
    """Name the checkpoint of lowest validation loss, for whoever evaluates or exports the run."""
    best = best_checkpoint(checkpoint.save, iteration) if checkpoint.save else None
    if best is not None:
        path, loss = best
        step = int(path.name.removeprefix("iter_"))
        log.line(f"best: {path}, validation loss {loss:.6g}: --ckpt-step {step} opens it")


def save_run_files(config: Config, tokenizer: Tokenizer) -> None:
    """Beside the checkpoints: the resolved configuration and the tokenizer."""
    directory = Path(config.checkpoint.save)
    with AtomicFiles() as files:
        files.open(directory / "config.toml").write(to_toml(config).encode())
    kept = directory / "tokenizer"
    if not kept.exists() or read_tokenizer(kept).fingerprint != tokenizer.fingerprint:
        tokenizer.save(kept)


def open_log(config: Config, mesh: Mesh) -> Log:
    """The voice of the run, and everything that shows its events on rank 0."""
    log, logging = Log(config.checkpoint.save, mesh.is_main), config.logging
    if not mesh.is_main:
        return log
    if logging.tensorboard_dir:
        log.add(TensorBoard(logging.tensorboard_dir))
    if logging.wandb_project:
        log.add(WeightsAndBiases(config))
    last, interval = train_iterations(config.training), config.training.log_interval
    if on_terminal():
        log.add(Panel(log.line, last))
    else:
        log.add(MegatronLines(log.line, interval, last, logging.log_throughput))
    return log
