"""A run that starts from a Hugging Face GPT-2 directory: its shape, its tokenizer, and of its
weights what each rank needs.

The weights stay in their file, which is mapped into memory (a pytorch_model.bin of torch before 1.6
cannot be, and is read whole): a rank brings one tensor at a time into our layout and keeps its own
part of it.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from megatron_yuyuan.checkpoint.hf_directory import (
    read_config,
    read_fitting_tokenizer,
    read_tensors,
)
from megatron_yuyuan.checkpoint.hf_format import HuggingFaceWeights
from megatron_yuyuan.checkpoint.manifest import CHECKSUMS, verify_export, verify_sizes
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.tokenizer import holds_tokenizer
from megatron_yuyuan.errors import DataError

HF_PREFIX = "hf:"
"""How --load names such a directory."""


def describe_huggingface(directory: Path) -> dict:
    """What a run must know of the directory before it starts, named as in a state.json: the model's
    shape, and the tokenizer, None where there is none.

    Opens the weights too, so that what is wrong with them is found now. Raises DataError and
    UnsafeError.
    """
    if not (directory / "config.json").exists():
        raise DataError(
            f"no config.json in {directory}",
            "it was named as a Hugging Face model",
            f"--load {HF_PREFIX}DIR with config.json and model.safetensors, or --load RUN_DIRECTORY",
        )
    if (directory / CHECKSUMS).exists():
        verify_sizes(directory, CHECKSUMS)
    config, tokenizer = read_config(directory), None
    if holds_tokenizer(directory):
        found = read_fitting_tokenizer(directory, config)
        tokenizer = {"fingerprint": found.fingerprint, "vocab_size": found.vocab_size}
    HuggingFaceWeights(read_tensors(directory), config)
    return {"config": Config(model=config).to_dict(), "tokenizer": tokenizer}


def load_huggingface(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` (model.NAME, as each lies here) in place with the directory's weights, turned
    into their dtype. An export of ours is compared with its checksums first. Raises DataError and
    UnsafeError."""
    verify_export(directory)
    fill_parts(HuggingFaceWeights(read_tensors(directory), read_config(directory)), tensors)


@torch.no_grad()
def fill_parts(weights: Mapping[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` (model.NAME, as each lies here) in place with whole weights under our names, of which
    one is in memory at a time."""
    for name, tensor in tensors.items():
        whole = weights[name.removeprefix("model.")]
        if isinstance(tensor, DTensor):
            tensor.to_local().copy_(_part(whole, tensor))
        else:
            tensor.copy_(whole)


def _part(whole: Tensor, like: DTensor) -> Tensor:
    """What this rank holds of a tensor that is divided as `like` is."""
    shape, offset = compute_local_shape_and_global_offset(
        like.shape, like.device_mesh, like.placements
    )
    return whole[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]
