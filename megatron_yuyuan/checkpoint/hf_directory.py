"""The files of a Hugging Face GPT-2 directory, opened without running anything of it: config.json is
JSON, weights are safetensors or opened with weights_only."""

import io
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from megatron_yuyuan.checkpoint.hf_format import model_config
from megatron_yuyuan.checkpoint.reading import DAMAGED, reading
from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.data.tokenizer import Tokenizer, read_tokenizer
from megatron_yuyuan.errors import DataError, UnsafeError

ZIP = b"PK\x03\x04"
"""How a zip file begins."""


def read_config(directory: Path) -> ModelConfig:
    """The shape of a Hugging Face GPT-2 directory. Raises DataError (damaged, another kind of model)
    and UnsafeError (it brings code)."""
    values = read_json(directory / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        if (directory / name).exists() and "auto_map" in read_json(directory / name):
            raise UnsafeError(
                f"{directory / name} has auto_map",
                "it asks to run code that came with the model",
                "a model that plain GPT2LMHeadModel and GPT2Tokenizer load",
            )
    return model_config(values, directory / "config.json")


def read_fitting_tokenizer(directory: Path, config: ModelConfig) -> Tokenizer:
    """The tokenizer of a Hugging Face directory. Raises DataError: none, damaged, or more tokens than
    rows of the embedding."""
    tokenizer = read_tokenizer(directory)
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, config.json vocab_size "
            f"{config.vocab_size}",
            "every token needs a row of the embedding",
            "the tokenizer that the model was trained with",
        )
    return tokenizer


class SafetensorsFiles(Mapping[str, Tensor]):
    """Tensors of safetensors files by name. A file is mapped into memory as long as a tensor of it is
    in use, and read where the tensor is. Raises DataError."""

    def __init__(self, paths: list[Path]):
        self._paths: dict[str, Path] = {}
        for path in paths:
            with reading(path), safe_open(path, framework="pt") as file:
                self._paths |= dict.fromkeys(file.keys(), path)

    def __getitem__(self, name: str) -> Tensor:
        path = self._paths[name]
        with reading(path), safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, which is not read."""
        path = self._paths[name]
        with reading(path), safe_open(path, framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def weight_files(directory: Path) -> list[Path]:
    """model.safetensors or else pytorch_model.bin, whole or the shards that its index names. Raises
    DataError and UnsafeError."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).exists():
            return [directory / name]
        if (index := directory / f"{name}.index.json").exists():
            return _shards(index)
    raise DataError(
        f"no weights in {directory}",
        "it has neither model.safetensors nor pytorch_model.bin",
        "a directory that GPT2LMHeadModel.save_pretrained wrote",
    )


def read_tensors(directory: Path) -> Mapping[str, Tensor]:
    """Every tensor of the weight files, under the names that they have there. Files are mapped into
    memory, and read when their tensors are used; only pickles of torch before 1.6 are read whole. Raises
    DataError and UnsafeError."""
    files = weight_files(directory)
    if files[0].suffix != ".bin":
        return SafetensorsFiles(files)
    return {name: tensor for file in files for name, tensor in read_pickled(file).items()}


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote of a dictionary, by name; mapped where torch can: a zip
    file, which torch 1.6 and later write. Transformer Engine's `_extra_state`, a BytesIO before its 2.0, is
    passed over unopened. Raises DataError and UnsafeError."""
    try:
        with reading(path, *DAMAGED), torch.serialization.safe_globals([io.BytesIO]):
            with path.open("rb") as stream:
                zipped = stream.read(len(ZIP)) == ZIP
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError:
        raise UnsafeError(
            f"{path} holds more than tensors",
            "opening it would run code",
            "the same tensors as safetensors",
        ) from None
    named = found.items() if isinstance(found, dict) else ()
    tensors = {name: tensor for name, tensor in named if isinstance(tensor, Tensor)}
    if not tensors:
        raise DataError(
            f"{path} holds no tensors by name",
            "it was named as the weights of a model",
            "a file that torch.save wrote of a state_dict",
        )
    return tensors


def _shards(index: Path) -> list[Path]:
    """The files that an index names. Raises DataError and UnsafeError."""
    names = read_json(index).get("weight_map")
    named = isinstance(names, dict) and all(isinstance(name, str) for name in names.values())
    if not (named and names):
        raise DataError(
            f"{index} has no weight_map",
            "it says which file holds which tensor",
            "the file as it was published",
        )
    shards = sorted(set(names.values()))
    for name in shards:
        if Path(name).name != name:
            raise UnsafeError(
                f"{index} names {name!r}",
                "it lies outside the model's directory",
                "a model from a source you trust",
            )
    return [index.parent / name for name in shards]


def read_json(path: Path) -> dict:
    """A JSON object. Raises DataError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            "it describes the model",
            "the file as it was published",
        ) from None
    if not isinstance(values, dict):
        raise DataError(
            f"{path} is not a JSON object", "it describes the model", "the file as it was published"
        )
    return values
