"""The whole program on one page: pretraining and finetuning are the same run over two kinds of
samples.

    configuration -> tokenizer -> where to start from -> samples -> mesh -> divided model -> steps

What can be wrong with flags, configuration, tokenizer and shards is found before a process group exists.
"""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from megatron_yuyuan.attempt import mesh_of_job, refusal_reported
from megatron_yuyuan.checkpoint.retention import best_checkpoint
from megatron_yuyuan.checkpoint.rollback import Rollback
from megatron_yuyuan.checkpoint.saver import build_saver
from megatron_yuyuan.config import CheckpointConfig, Config
from megatron_yuyuan.config_toml import to_toml
from megatron_yuyuan.continuations import continue_prompts
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.data.tokenizer import Tokenizer, read_tokenizer
from megatron_yuyuan.digests import open_digests
from megatron_yuyuan.errors import DamagedError
from megatron_yuyuan.exit_report import exit_reported, stopped
from megatron_yuyuan.goodput import Goodput, process_begun
from megatron_yuyuan.introduction import introduce_plan, introduce_state, resharded
from megatron_yuyuan.kernels import Kernels
from megatron_yuyuan.kernels.choice import choose
from megatron_yuyuan.kernels.float8 import with_float8
from megatron_yuyuan.log import Log, MegatronLines, read_events
from megatron_yuyuan.model.attention_backend import describe_attention
from megatron_yuyuan.origin import Origin, starting_point
from megatron_yuyuan.out_of_memory import memory_explained
from megatron_yuyuan.panel import Panel, on_terminal
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.parallel.data import compute_dtype
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.resolve import (
    Samples,
    compare_with_checkpoint,
    fall_back,
    of_every_rank,
    open_samples,
    resolve,
    run_tokenizer,
)
from megatron_yuyuan.samples import (
    asks_questions,
    borders,
    fingerprints,
    introduce_example,
    question_datasets,
    text_datasets,
)
from megatron_yuyuan.train.loop import train
from megatron_yuyuan.train.profile import choose_trainer
from megatron_yuyuan.train.schedule import train_iterations
from megatron_yuyuan.train.state import TrainState, build_state
from megatron_yuyuan.train.stopping import Stopping
from megatron_yuyuan.train.stragglers import Stragglers
from megatron_yuyuan.train.verification import make_deterministic
from megatron_yuyuan.validation import validate
from megatron_yuyuan.watch.exit_file import ended_before
from megatron_yuyuan.watch.heartbeat import Watched
from megatron_yuyuan.watch.saved import iteration_of
from megatron_yuyuan.watch.witness import unwatched
from megatron_yuyuan.writers import TensorBoard, WeightsAndBiases, require_extras


def pretrain(config: Config, watched: Watched | None = None) -> None:
    """Train on windows of a token stream (`torchrun pretrain_gpt.py`)."""
    run(config, text_datasets, watched)


def finetune(config: Config, watched: Watched | None = None) -> None:
    """Train on questions and answers (`torchrun finetune_qa.py`), from the weights of --load."""
    run(config.replace(finetune=True), question_datasets, watched)


def run(config: Config, samples: Samples, watched: Watched | None = None) -> None:
    """Assemble a run and take its steps. watched: by a witness, which outlives this process. Raises
    YuyuanError for what a person must change, StoppedError if it was asked to stop, and LostError if
    another rank was lost."""
    if config.parallel.dry_run:
        from megatron_yuyuan.rehearsal import rehearse  # fake tensors are imported for this alone

        rehearse(config, samples)
        return
    watched = watched or unwatched(config.checkpoint.save)
    stopping = Stopping(config.training, watched.signals)
    before = ended_before(config.checkpoint.save)
    with refusal_reported(watched):
        ranks, origin = mesh_module.world_size(), starting_point(config)
        tokenizer = run_tokenizer(config, origin)
        config = resolve(config, tokenizer.vocab_size, origin, ranks)
        validate(config, ranks)
        require_extras(config.logging)
        config, training_set, validation_set = open_samples(config, tokenizer, samples)
        data = fingerprints(training_set)
        overridden = compare_with_checkpoint(config, origin, ranks, data)
        alike = of_every_rank(config, origin, tokenizer, len(training_set))

    with mesh_of_job(config, stopping, watched, alike) as mesh, memory_explained(config, mesh):
        if config.training.is_deterministic:
            make_deterministic(mesh.device)
        log = open_log(config, mesh)
        introduce_plan(config, mesh, training_set, validation_set, log)
        introduce_example(training_set, tokenizer, log)
        state = build_state(config, mesh, kernels_of(config, mesh, log))
        state.data = data
        if origin is None:
            state.began_with = ""
        else:
            origin = load_into(state, origin, config, log)
        saver = build_saver(config, state, tokenizer, origin.path if origin else None, log)
        saver.require_place()
        if overridden:
            log.line(f"warning: overridden: {'; '.join(overridden)}")
        if config.checkpoint.save and mesh.is_main:  # only now: a failed start leaves nothing
            save_run_files(config, tokenizer)
        say_start(state, mesh, asks_questions(training_set), before, log)
        introduce_state(config, state, log)
        trainer = choose_trainer(config, state, borders(config, tokenizer))
        continuations = continue_prompts(
            config, state, tokenizer, asks_questions(training_set), log
        )
        stragglers = Stragglers(config, mesh, log)

        def after_evaluation() -> None:
            continuations()
            stragglers.name_them(state.iteration)

        with exit_reported(config.checkpoint, state), log:
            with saver, closing(trainer), open_digests(config, state) as digest:
                beat = watched.heartbeat.beat
                digest()
                stragglers.name_them(state.iteration)
                stopping.note_interrupts()
                stop = train(
                    trainer,
                    training_set,
                    validation_set,
                    saver,
                    stopping,
                    log,
                    after_evaluation=after_evaluation,
                    beat=beat,
                    after_step=digest,
                    take_back=Rollback(config, state, saver, log),
                )
            if stop is not None:
                log.event("stop", iteration=state.iteration, **asdict(stop))
                raise stopped(stop, config.checkpoint, state)
            say_best(config.checkpoint, state.iteration, log)


def kernels_of(config: Config, mesh: Mesh, log: Log) -> Kernels:
    """The kernels of a run; which they are, and which attention, is said. Raises KernelsError."""
    kernels, chosen = choose_alike(config.parallel.kernels, mesh)
    if config.training.fp8_format != "none":
        kernels = with_float8(kernels, config.parallel.kernels, mesh.device)
        chosen += f", float8 {config.training.fp8_format}"
    dtype, masked = compute_dtype(config.training), config.data.divides_attention
    attention = describe_attention(config.model, dtype, mesh.device, masked)
    log.line(f"kernels: {chosen}; attention: {attention}")
    return kernels


def choose_alike(name: str, mesh: Mesh) -> tuple[Kernels, str]:
    """The kernels of --kernels, the same on every rank, and what to say of them. Raises KernelsError."""
    kernels, chosen = choose(name, mesh.device)
    if name == "auto" and not mesh.all_agree(kernels != Kernels()) and kernels != Kernels():
        return Kernels(), "reference, because not every rank can build the CUDA kernels"
    return kernels, chosen


def say_start(state: TrainState, mesh: Mesh, asks: bool, before: str, log: Log) -> None:
    """Log the start of this process, with the time it was launched, whether it learns questions and how the
    start before it ended, and, if a run is continued, a restart with the iteration from which it goes on."""
    log.event(
        "start",
        iteration=state.iteration,
        begun=process_begun(),
        ranks=mesh_module.world_size(),
        layout=mesh.describe(),
        questions=asks,
        after=before,
    )
    if state.iteration or log.has_history:
        log.event("restart", iteration=state.iteration)


def load_into(state: TrainState, origin: Origin, config: Config, log: Log) -> Origin:
    """Fill a state from a checkpoint of any layout, or, where that is damaged and the run continues it, from
    the newest whole one before it; returns which. Raises DataError."""
    with_moments = not config.checkpoint.no_load_optim
    if origin.weights_only:
        state.begin_with(origin.load)
        said = f"weights of {origin.path}"
        state.began_with = config.checkpoint.load
    else:
        origin = fill_or_fall_back(state, origin, config)
        saved = origin.state
        steps = saved["optimizer_steps"] if with_moments else 0
        state.continue_after(saved["iteration"], saved["consumed_samples"], steps)
        state.recall(saved)
        said = (
            f"continuing {origin.path}{resharded(saved, config.parallel, mesh_module.world_size())}"
        )
    for fault in origin.passed_over:
        log.line(f"warning: {fault}")
    log.line(said)
    return origin


def fill_or_fall_back(state: TrainState, origin: Origin, config: Config) -> Origin:
    """Fill a state from the checkpoint that it continues. Files are compared before any tensor is filled."""
    while True:
        try:
            state.fill(origin.load, not config.checkpoint.no_load_optim)
            return origin
        except DamagedError as error:
            origin = fall_back(origin, config, error)


def say_best(checkpoint: CheckpointConfig, iteration: int, log: Log) -> None:
    """Name the checkpoint of lowest validation loss, for whoever evaluates or exports the run."""
    best = best_checkpoint(checkpoint.save, iteration) if checkpoint.save else None
    if best is not None:
        path, loss = best
        step = iteration_of(path)
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
    metrics = Path(config.checkpoint.save) / "metrics.jsonl"
    log.add(Goodput(log, read_events(metrics) if log.has_history else ()))
    return log
