"""Export to and import from Hugging Face directories. The conversion itself stands in `hf_format`.

An export is checked before it appears: transformers (or, where it is not installed, our own reader)
opens the written files and must compute the logits and token ids that the model here does. An import
is checked in the same way. Both hold the embedding and one layer at a time.
"""

import importlib.util
import json
from pathlib import Path

import torch
from torch import Tensor

from megatron_yuyuan.checkpoint.conversion import new_directory, write_run
from megatron_yuyuan.checkpoint.hf_directory import (
    read_config,
    read_fitting_tokenizer,
    read_tensors,
)
from megatron_yuyuan.checkpoint.hf_format import (
    PARAMETER_PREFIX,
    HuggingFaceWeights,
    from_huggingface,
    huggingface_config,
    to_huggingface,
)
from megatron_yuyuan.checkpoint.hf_shards import SHARD_BYTES, write_shards
from megatron_yuyuan.checkpoint.manifest import CHECKSUMS, digests
from megatron_yuyuan.checkpoint.model import EXPORT_NOTES, LoadedModel, StoredModel, open_model
from megatron_yuyuan.checkpoint.model_card import model_card
from megatron_yuyuan.checkpoint.probe import Probe, our_logits, require_same, transformers_logits
from megatron_yuyuan.checkpoint.reading import reading
from megatron_yuyuan.checkpoint.stored import StoredWeights
from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.errors import DataError

__all__ = ["DTYPES", "export_directory", "from_huggingface", "import_directory", "to_huggingface"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CARD = "README.md"
"""A person's to change: it has no checksum."""
PROBE_TEXT = "Question:What is gout? answer: A 37 °C naïve β-cell,\n\n  said 'they'll'."


def export_directory(
    source: StoredModel | LoadedModel,
    directory: str | Path,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a directory that GPT2LMHeadModel, the tokenizer's class, Auto* and pipeline() load;
    returns its path.

    dtype: float32 (exact), bfloat16 or float16 (rounded). The directory appears whole, checked, or
    not at all. Raises ConfigError: it exists and is not empty, or transformers has no equal of the
    tokenizer; DataError: no room, a source that cannot be read, or what was written does not compute
    the same.
    """
    tokenizer_files = source.tokenizer.huggingface_files()
    with new_directory(directory) as partial:
        for name, content in tokenizer_files.items():
            (partial / name).write_bytes(content)
        for name, values in _documents(source, dtype).items():
            (partial / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        card = model_card(source, Path(directory).absolute().name, dtype)
        (partial / CARD).write_text(card, encoding="utf-8")
        write_shards(partial, source.weights, source.config, DTYPES[dtype], shard_bytes)
        _check_export(source, partial, DTYPES[dtype])
        checksums = {n: entry for n, entry in digests(partial).items() if n != CARD}
        (partial / CHECKSUMS).write_text(json.dumps(checksums, indent=2) + "\n", encoding="utf-8")
    return Path(directory)


def _documents(source: StoredModel | LoadedModel, dtype: str) -> dict[str, dict]:
    """File name -> JSON of everything beside weights, tokenizer and card."""
    config, eod, tokenizer = source.config, source.tokenizer.eod, source.tokenizer
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), tokenizer.end_of_text)
    return {
        "config.json": huggingface_config(config, eod, dtype),
        "generation_config.json": {"bos_token_id": eod, "eos_token_id": eod, "pad_token_id": eod},
        "special_tokens_map.json": special,
        "tokenizer_config.json": special
        | {
            "tokenizer_class": tokenizer.huggingface_class,
            "add_prefix_space": False,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.max_position_embeddings,
        },
        EXPORT_NOTES: {
            "format": "megatron_yuyuan export 1",
            "template": source.template.to_dict(),
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "iteration": source.state["iteration"],
            "consumed_samples": source.state["consumed_samples"],
        },
    }


def import_directory(hf_directory: str | Path, run_directory: str | Path) -> Path:
    """Make a run directory with checkpoint iter_0000000 (weights only, float32) of a Hugging Face
    GPT-2; returns it.

    `--load RUN --finetune` then starts from it in any layout. Raises ConfigError: the run directory
    exists and is not empty; DataError and UnsafeError as `open_model`, and DataError where the run
    computes other logits than the directory.
    """
    hf_directory = Path(hf_directory)
    if not (hf_directory / "config.json").exists():
        raise DataError(
            f"no config.json in {hf_directory}",
            "it was named as a Hugging Face model",
            "a directory with config.json, model.safetensors and a tokenizer",
        )
    with new_directory(run_directory) as partial:
        source = open_model(hf_directory)
        write_run(source, partial)
        written = StoredWeights(partial / "iter_0000000", source.config)
        require_same(
            our_logits(source.config, written.__getitem__),
            _their_logits(hf_directory),
            "the imported model",
            "a mistake in the conversion, or a config.json that is not of these weights",
            "the directory as it was published",
        )
    return Path(run_directory)


def _check_export(source: StoredModel | LoadedModel, directory: Path, dtype: torch.dtype) -> None:
    """Compare the written directory with the model: logits of a probe batch, ids of a probe text.
    Raises DataError."""
    require_same(
        _their_logits(directory),
        our_logits(source.config, lambda name: source.weights[name].to(dtype)),
        "the exported model",
        f"weights that do not fit {dtype}, or a mistake in the conversion",
        "--dtype float32",
    )
    if _their_ids(directory, source.config) != source.tokenizer.encode(PROBE_TEXT):
        raise DataError(
            "the exported tokenizer gives other ids",
            f"transformers reads it as {source.tokenizer.huggingface_class}",
            "a tokenizer of GPT-2's kind, as tools/train_tokenizer.py makes it",
        )


def _has_transformers() -> bool:
    return importlib.util.find_spec("transformers") is not None


def _their_logits(directory: Path) -> Tensor:
    """Of a Hugging Face directory, by transformers or by our own reader."""
    tensors, config = read_tensors(directory), read_config(directory)
    if not _has_transformers():
        return our_logits(config, HuggingFaceWeights(tensors, config).__getitem__)
    prefix = (
        PARAMETER_PREFIX if PARAMETER_PREFIX + "wte.weight" in tensors else ""
    )  # some files lack it
    return transformers_logits(
        directory,
        lambda name: tensors[prefix + name.removeprefix(PARAMETER_PREFIX)],
        Probe.of(config),
    )


def _their_ids(directory: Path, config: ModelConfig) -> list[int]:
    """Ids of the probe text, by transformers or by our own reader."""
    if not _has_transformers():
        return read_fitting_tokenizer(directory, config).encode(PROBE_TEXT)
    from transformers import AutoTokenizer

    with reading(directory, ValueError):
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return tokenizer(PROBE_TEXT)["input_ids"]
