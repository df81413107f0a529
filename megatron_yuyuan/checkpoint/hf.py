"""Export to and import from Hugging Face directories. The conversion itself stands in `hf_format`.

An export is checked before it appears: transformers (or, where it is not installed, our own reader)
opens the written files and must compute the logits and token ids that the model here does.
"""

import copy
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from megatron_yuyuan.checkpoint.dcp import save_checkpoint
from megatron_yuyuan.checkpoint.hf_directory import read_directory
from megatron_yuyuan.checkpoint.hf_format import (
    from_huggingface,
    huggingface_config,
    to_huggingface,
)
from megatron_yuyuan.checkpoint.model import EXPORT_NOTES, LoadedModel, load_model
from megatron_yuyuan.checkpoint.model_card import model_card
from megatron_yuyuan.config_toml import from_dict, to_toml
from megatron_yuyuan.errors import ConfigError, DataError
from megatron_yuyuan.model.gpt2 import GPT2

__all__ = [
    "DTYPES",
    "export_directory",
    "from_huggingface",
    "import_directory",
    "new_directory",
    "to_huggingface",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = 1e-5
"""Largest difference of a logit, relative to the largest logit."""
PROBE_TEXT = "Question:What is gout? answer: A 37 °C naïve β-cell,\n\n  said 'they'll'."


def export_directory(loaded: LoadedModel, directory: str | Path, dtype: str = "float32") -> Path:
    """Write a directory that GPT2LMHeadModel, the tokenizer's class, Auto* and pipeline() load;
    returns its path.

    dtype: float32 (exact), bfloat16 or float16 (rounded). The directory appears whole, checked, or
    not at all. Raises ConfigError: it exists and is not empty, or transformers has no equal of the
    tokenizer; DataError: no room, or what was written does not compute the same.
    """
    config, eod = loaded.model.config, loaded.tokenizer.eod
    tokenizer_files = loaded.tokenizer.huggingface_files()
    with new_directory(directory) as partial:
        tensors = to_huggingface(loaded.model.state_dict(), config)
        save_file(
            {name: tensor.to("cpu", DTYPES[dtype]) for name, tensor in tensors.items()},
            partial / "model.safetensors",
            metadata={"format": "pt"},
        )
        for name, content in tokenizer_files.items():
            (partial / name).write_bytes(content)
        special = dict.fromkeys(
            ("bos_token", "eos_token", "unk_token"), loaded.tokenizer.end_of_text
        )
        documents = {
            "config.json": huggingface_config(config, eod, dtype),
            "generation_config.json": {
                "bos_token_id": eod,
                "eos_token_id": eod,
                "pad_token_id": eod,
            },
            "special_tokens_map.json": special,
            "tokenizer_config.json": special
            | {
                "tokenizer_class": loaded.tokenizer.huggingface_class,
                "add_prefix_space": False,
                "add_bos_token": False,
                "clean_up_tokenization_spaces": False,
                "model_max_length": config.max_position_embeddings,
            },
            EXPORT_NOTES: {
                "format": "megatron_yuyuan export 1",
                "template": loaded.template.to_dict(),
                "tokenizer_fingerprint": loaded.tokenizer.fingerprint,
                "iteration": loaded.state["iteration"],
                "consumed_samples": loaded.state["consumed_samples"],
            },
        }
        for name, values in documents.items():
            (partial / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        shutil.copymode(
            partial / "config.json", partial / "model.safetensors"
        )  # it is made for the owner alone
        (partial / "README.md").write_text(
            model_card(loaded, Path(directory).absolute().name), encoding="utf-8"
        )
        _check_export(loaded, partial, DTYPES[dtype])
    return Path(directory)


def import_directory(hf_directory: str | Path, run_directory: str | Path) -> Path:
    """Make a run directory with checkpoint iter_0000000 (weights only, float32) of a Hugging Face
    GPT-2; returns it.

    `--load RUN --finetune` then starts from it in any layout. Raises ConfigError: the run directory
    exists and is not empty; DataError and UnsafeError as `hf_directory.read_directory`.
    """
    if not (Path(hf_directory) / "config.json").exists():
        raise DataError(
            f"no config.json in {hf_directory}",
            "it was named as a Hugging Face model",
            "a directory with config.json, model.safetensors and a tokenizer",
        )
    with new_directory(run_directory) as partial:
        loaded = load_model(hf_directory)
        tensors = {f"model.{name}": tensor for name, tensor in loaded.model.state_dict().items()}
        loaded.tokenizer.save(partial / "tokenizer")
        (partial / "config.toml").write_text(
            to_toml(from_dict(loaded.state["config"])), encoding="utf-8"
        )
        save_checkpoint(partial, 0, tensors, loaded.state)
    return Path(run_directory)


@contextmanager
def new_directory(target: str | Path) -> Iterator[Path]:
    """A temporary directory beside `target` that takes its name when the `with` block ends well,
    else goes.

    Raises ConfigError where the target exists and is not an empty directory, DataError where the
    disk refuses.
    """
    target = Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            f"{target} exists and is not empty",
            "nothing that is there is overwritten",
            "a --save that does not exist yet",
        )
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        for path in (*partial.rglob("*"), partial):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        os.rename(partial, target)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot write {target}: {error}",
            "the output would be incomplete",
            "a --save in a folder with room that may be written to",
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@torch.no_grad()
def _check_export(loaded: LoadedModel, directory: Path, dtype: torch.dtype) -> None:
    """Compare the written directory with the model: logits of a probe batch, ids of a probe text.
    Raises DataError."""
    model = loaded.model
    if dtype != torch.float32:  # the file holds rounded weights: so does what it is compared with
        model = copy.deepcopy(model).to(dtype).float()
    length, rows = min(32, model.config.max_position_embeddings), 2
    probe = (torch.arange(rows * length) * 7919 % model.config.vocab_size).view(rows, length)
    expected = _logits(model, probe)
    by_transformers = importlib.util.find_spec("transformers") is not None
    actual, ids = (_open_with_transformers if by_transformers else _open_ourselves)(
        directory, probe
    )
    difference = ((actual - expected).abs().max() / expected.abs().max()).item()
    if actual.shape != expected.shape or not difference <= TOLERANCE:
        raise DataError(
            f"the exported model computes other logits: relative difference {difference:.1e}, at most "
            f"{TOLERANCE:.0e}",
            f"weights that do not fit {dtype}, or a mistake in the conversion",
            "--dtype float32",
        )
    if ids != loaded.tokenizer.encode(PROBE_TEXT):
        raise DataError(
            "the exported tokenizer gives other ids",
            f"transformers reads it as {loaded.tokenizer.huggingface_class}",
            "a tokenizer of GPT-2's kind, as tools/train_tokenizer.py makes it",
        )


def _logits(model: GPT2, tokens: Tensor) -> Tensor:
    """(B, T) int64 -> (B, T, vocab_size) on the CPU."""
    tokens = tokens.to(model.wte.weight.device)
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return model(tokens, positions=positions, sample_ids=tokens[:, 0], step=0).cpu()


def _open_with_transformers(directory: Path, probe: Tensor) -> tuple[Tensor, list[int]]:
    from transformers import AutoTokenizer, GPT2LMHeadModel
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = GPT2LMHeadModel.from_pretrained(directory, local_files_only=True).float().eval()
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    finally:
        if bar:
            logging.enable_progress_bar()
    return model(probe).logits, tokenizer(PROBE_TEXT)["input_ids"]


def _open_ourselves(directory: Path, probe: Tensor) -> tuple[Tensor, list[int]]:
    config, tensors, tokenizer = read_directory(directory)
    model = GPT2(config).eval()
    model.load_state_dict(tensors)
    return _logits(model, probe), tokenizer.encode(PROBE_TEXT)
