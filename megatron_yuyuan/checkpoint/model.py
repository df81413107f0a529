"""A trained model, opened for use: in one process, from a run directory or from a Hugging Face
directory, or divided over the ranks of a job, from a run directory."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_yuyuan.checkpoint.dcp import FORMAT_VERSION, describe_run, load_tensors, read_run
from megatron_yuyuan.checkpoint.hf_directory import (
    read_config,
    read_fitting_tokenizer,
    read_json,
    read_tensors,
)
from megatron_yuyuan.checkpoint.hf_format import HuggingFaceWeights
from megatron_yuyuan.checkpoint.hf_start import HF_PREFIX
from megatron_yuyuan.checkpoint.manifest import verify_export
from megatron_yuyuan.checkpoint.newest import named_checkpoint
from megatron_yuyuan.checkpoint.stored import StoredWeights, saved_factors
from megatron_yuyuan.config import Config, ModelConfig, ParallelConfig, TrainingConfig
from megatron_yuyuan.config_toml import from_dict
from megatron_yuyuan.data.template import TEMPLATE, QuestionTemplate
from megatron_yuyuan.data.tokenizer import Tokenizer, read_tokenizer
from megatron_yuyuan.errors import ConfigError, DataError
from megatron_yuyuan.model.decoding import store_by_columns
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.lora import merge_factors
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.parallel.forward import DividedModel
from megatron_yuyuan.parallel.plan import build_stages
from megatron_yuyuan.train.state import named_parameters
from megatron_yuyuan.validation import validate
from megatron_yuyuan.watch.saved import find_checkpoint

EXPORT_NOTES = "yuyuan.json"
"""What Hugging Face's files have no place for: the template, and how far the model was trained."""


@dataclass(frozen=True)
class StoredModel:
    """A model on the disk with everything that its conversion needs."""

    config: ModelConfig
    weights: Mapping[str, Tensor]
    """Undivided, by name; each is read when it is asked for."""
    tokenizer: Tokenizer
    template: QuestionTemplate
    state: dict
    path: Path
    """This and those above: as of a `LoadedModel`."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with everything that its use needs."""

    model: GPT2 | DividedModel
    """float32, in eval mode."""
    tokenizer: Tokenizer
    template: QuestionTemplate
    state: dict
    """state.json of the checkpoint, or what one made from the Hugging Face directory would hold."""
    path: Path
    """The checkpoint, or the Hugging Face directory."""

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.model.config

    @property
    def weights(self) -> dict[str, Tensor]:
        """By name, of a model that is not divided."""
        assert isinstance(self.model, GPT2)
        return self.model.state_dict()


def open_model(directory: str | Path, iteration: int | None = None) -> StoredModel:
    """What `load_model` opens, with its weights left on the disk. Raises as `load_model`."""
    directory = _directory(directory)
    if _is_huggingface(directory, iteration):
        verify_export(directory)
        config = read_config(directory)
        tokenizer = read_fitting_tokenizer(directory, config)
        template = _noted_template(directory)
        weights: Mapping[str, Tensor] = HuggingFaceWeights(read_tensors(directory), config)
        state = imported_state(config, tokenizer, template)
        return StoredModel(config, weights, tokenizer, template, state, directory)
    path, state, tokenizer = _open_run(directory, iteration)
    config = from_dict({"model": state["config"]["model"]}).model
    weights = StoredWeights(path, config)
    config = dataclasses.replace(config, lora_rank=0)
    template = QuestionTemplate.from_dict(state["template"])
    return StoredModel(config, weights, tokenizer, template, state, path)


def load_model(
    directory: str | Path, iteration: int | None = None, device: str | torch.device = "cpu"
) -> LoadedModel:
    """Open RUN (the checkpoint of `iteration`, None the latest) or a directory with Hugging Face's
    config.json.

    Any layout may have saved the run; the factors of one that was finetuned with LoRA are merged into
    their matrices. Raises DataError: no checkpoint, damaged, or the tokenizer
    beside it is not the one it was trained with; UnsafeError: a file that would run code;
    ConfigError: a device that is not there.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda, but torch finds no CUDA",
            "the model would have nowhere to live",
            "--device cpu",
        )
    directory = _directory(directory)
    if _is_huggingface(directory, iteration):
        return _open_huggingface(directory, device)
    path, state, tokenizer = _open_run(directory, iteration)
    config = from_dict({"model": state["config"]["model"]}).model
    model = _empty(dataclasses.replace(config, lora_rank=0), device)
    weights = model.state_dict()
    factors = {n: torch.empty(s, device=device) for n, s in saved_factors(config).items()}
    load_tensors(path, {f"model.{name}": t for name, t in (weights | factors).items()})
    merge_factors(weights, factors, config)
    if model.device.type == "cpu":
        store_by_columns(model)
    return LoadedModel(model, tokenizer, QuestionTemplate.from_dict(state["template"]), state, path)


def _directory(named: str | Path) -> Path:
    """A directory as --load names it, with or without hf:."""
    return Path(str(named).removeprefix(HF_PREFIX))


def _is_huggingface(directory: Path, iteration: int | None) -> bool:
    """Whether a directory is one of Hugging Face's, and no run. Raises ConfigError for an iteration of one."""
    if find_checkpoint(directory) is not None or not (directory / "config.json").exists():
        return False
    if iteration is not None:
        raise ConfigError(
            f"ckpt_step={iteration} and {directory}",
            "a Hugging Face directory holds one model",
            "leave --ckpt-step out",
        )
    return True


def load_divided_model(
    directory: str | Path, iteration: int | None, parallel: ParallelConfig
) -> LoadedModel:
    """Open RUN on the ranks of a job together, its model divided as `parallel` says, for generation.

    Joins the process group; the caller leaves it. Raises what `load_model` does, and ConfigErrors
    for a layout that does not fit.
    """
    directory = _directory(directory)
    if _is_huggingface(directory, iteration):
        raise ConfigError(
            f"{directory} is a Hugging Face directory",
            "a model is divided from a checkpoint of a run",
            f"tools/convert_checkpoint.py --from hf --load {directory} --save RUN, then --load RUN",
        )
    path, state, tokenizer = _open_run(directory, iteration)
    saved = from_dict(state["config"])
    model_config = dataclasses.replace(saved.model, attention_backend="auto")  # float32 here
    config = Config(model_config, parallel, saved.data, training=TrainingConfig(train_iters=1))
    config = config.replace(global_batch_size=mesh_module.world_size())
    validate(config, mesh_module.world_size())
    mesh = mesh_module.start(parallel)
    stages = build_stages(config, mesh)
    load_tensors(path, {f"model.{name}": p.detach() for name, p in named_parameters(stages)})
    model = DividedModel(stages, mesh, config)
    return LoadedModel(model, tokenizer, QuestionTemplate.from_dict(state["template"]), state, path)


def _open_run(directory: Path, iteration: int | None) -> tuple[Path, dict, Tokenizer]:
    """A checkpoint of a run, its state.json, and the tokenizer beside it. Raises DataError."""
    path = named_checkpoint(directory, iteration)
    state = read_run(path)
    tokenizer = read_tokenizer(directory / "tokenizer")
    expected = state["tokenizer"]["fingerprint"]
    if tokenizer.fingerprint != expected:
        raise DataError(
            f"{path} was trained with tokenizer {expected}, {directory / 'tokenizer'} is "
            f"{tokenizer.fingerprint}",
            "its embedding belongs to other tokens",
            "the tokenizer directory that the run wrote",
        )
    return path, state, tokenizer


def _open_huggingface(directory: Path, device) -> LoadedModel:
    stored = open_model(directory)
    model = fill(stored.config, stored.weights, device)
    if model.device.type == "cpu":
        store_by_columns(model)
    return LoadedModel(model, stored.tokenizer, stored.template, stored.state, directory)


def _noted_template(directory: Path) -> QuestionTemplate:
    """The template of an export of ours; of another directory the one that we train with."""
    notes = read_json(directory / EXPORT_NOTES) if (directory / EXPORT_NOTES).exists() else {}
    return QuestionTemplate.from_dict(notes.get("template", TEMPLATE.to_dict()))


@torch.no_grad()
def fill(config: ModelConfig, weights: Mapping[str, Tensor], device="cpu") -> GPT2:
    """A model with these weights, of which no more than one is in memory beside it."""
    model = _empty(config, device)
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
    return model


def _empty(config: ModelConfig, device) -> GPT2:
    with torch.device("meta"):
        model = GPT2(config)
    return model.to_empty(device=device).eval()


def imported_state(config: ModelConfig, tokenizer: Tokenizer, template: QuestionTemplate) -> dict:
    """state.json of weights that come from elsewhere: iteration 0, nothing read, no optimizer."""
    whole = Config(model=config).replace(seq_length=config.max_position_embeddings)
    return {
        "format_version": FORMAT_VERSION,
        "iteration": 0,
        **describe_run(whole, tokenizer, 0, None, template),
    }
