"""Where a run starts from: fresh weights, a checkpoint of its own or of another run, Hugging Face's weights or
Megatron-core's. Found before a process group exists, alike on every rank."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from megatron_yuyuan.checkpoint import hf_start, megatron_start
from megatron_yuyuan.checkpoint.dcp import load_tensors, read_run, require_checkpoint
from megatron_yuyuan.checkpoint.newest import Newest, named_checkpoint, newest_whole
from megatron_yuyuan.config import CheckpointConfig, Config
from megatron_yuyuan.data import permutation
from megatron_yuyuan.data.tokenizer import open_tokenizer
from megatron_yuyuan.errors import ConfigError, DataError


@dataclass(frozen=True)
class Origin:
    """The checkpoint a run starts from."""

    path: Path
    weights_only: bool
    """Begin a new run with its weights, instead of continuing it."""
    state: dict
    """Its state.json; of a Hugging Face directory or Megatron's checkpoint only `config` and `tokenizer`."""
    tokenizer: Path | None
    """The directory of its tokenizer; None where it brings none."""
    load: Callable[[dict[str, Tensor]], None]
    """Fills tensors, as they lie on a rank, in place."""
    passed_over: tuple[str, ...] = ()
    """Why newer checkpoints of the run were not taken."""


def _checkpoint(path: Path, weights_only: bool) -> Origin:
    """A checkpoint of ours as the place to start from."""
    load = partial(load_tensors, path)
    return Origin(path, weights_only, read_run(path), path.parent / "tokenizer", load)


def _huggingface(checkpoint: CheckpointConfig) -> Origin:
    """The directory of --load hf:DIR as the place to start from. Raises ConfigError, DataError
    and UnsafeError."""
    path = Path(checkpoint.load.removeprefix(hf_start.HF_PREFIX))
    if checkpoint.ckpt_step:
        raise ConfigError(
            f"ckpt_step={checkpoint.ckpt_step} and load={checkpoint.load}",
            "a Hugging Face directory holds one model",
            "leave --ckpt-step out",
        )
    state = hf_start.describe_huggingface(path)
    tokenizer = path if state["tokenizer"] else None
    return Origin(path, True, state, tokenizer, partial(hf_start.load_huggingface, path))


def _megatron(config: Config) -> Origin:
    """The checkpoint of --load megatron:PATH as the place to start from: the tokens are those of the
    tokenizer that is configured, which it must be. Raises ConfigError, DataError and UnsafeError."""
    checkpoint, given = config.checkpoint, config.model
    path = Path(checkpoint.load.removeprefix(megatron_start.MEGATRON_PREFIX))
    tokens = given.vocab_size or open_tokenizer(config.data).vocab_size
    heads, step = given.num_attention_heads, checkpoint.ckpt_step or None
    state, load = megatron_start.open_megatron(path, step, heads, tokens)
    return Origin(path, True, state, None, load)


def starting_point(config: Config) -> Origin | None:
    """Which checkpoint to begin with; None means fresh weights. Raises ConfigError, DataError and
    UnsafeError.

    --load DIR continues what is there, or ends the run. With --finetune its weights begin a new
    run, which a restart continues from --save. Without --load a run continues from --save, or
    begins fresh. --ckpt-step chooses among the checkpoints of --load, or else of --save. --load
    hf:DIR or megatron:PATH always begins a new run.
    """
    checkpoint = config.checkpoint
    step, own = checkpoint.ckpt_step or None, Newest(None)
    from_hf = checkpoint.load.startswith(hf_start.HF_PREFIX)
    foreign = from_hf or checkpoint.load.startswith(megatron_start.MEGATRON_PREFIX)
    if checkpoint.save and step and not checkpoint.load:
        own = Newest(require_checkpoint(checkpoint.save, step))
    elif checkpoint.save and (checkpoint.finetune or foreign or not checkpoint.load):
        own = newest_whole(checkpoint.save, checkpoint.strict)
    if foreign and own.path is None:
        return _huggingface(checkpoint) if from_hf else _megatron(config)
    if checkpoint.finetune and own.path is None:
        if not checkpoint.load:
            raise ConfigError(
                "load is not given",
                "finetuning starts from the weights of another run",
                "--load RUN_DIRECTORY of the pretraining",
            )
        return _checkpoint(named_checkpoint(checkpoint.load, step), True)
    if checkpoint.load and not (checkpoint.finetune or foreign):
        own = _named(checkpoint)
    if own.path is None:
        return None
    return continued(own.path, own.faults, checkpoint)


def goes_back(checkpoint: CheckpointConfig) -> bool:
    """Whether the same command, started again, begins where it began, and not at what --save has since."""
    load, step = checkpoint.load, checkpoint.ckpt_step
    if checkpoint.finetune or load.startswith((hf_start.HF_PREFIX, megatron_start.MEGATRON_PREFIX)):
        return False
    elsewhere = load and Path(load).absolute() != Path(checkpoint.save).absolute()
    return bool(step or elsewhere)


def _named(checkpoint: CheckpointConfig) -> Newest:
    """The checkpoint of --load, to be continued. Raises DataError."""
    if checkpoint.ckpt_step:
        return Newest(require_checkpoint(checkpoint.load, checkpoint.ckpt_step))
    found = newest_whole(checkpoint.load, checkpoint.strict)
    return found if found.path else Newest(require_checkpoint(checkpoint.load))


def continued(own: Path, passed_over: tuple[str, ...], checkpoint: CheckpointConfig) -> Origin:
    """A checkpoint that the run goes on from. Raises DataError: it cannot."""
    origin = replace(_checkpoint(own, False), passed_over=passed_over)
    state = origin.state
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
    return origin
