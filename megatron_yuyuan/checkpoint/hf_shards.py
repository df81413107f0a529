"""The weights of an export: safetensors files of a bounded size, and the index that names them.

A file is its header's length (8 bytes, little endian), the header (JSON: dtype, shape and place of every
tensor), and the tensors' bytes. The library safetensors writes a file from tensors that are all in memory;
here each is made when its turn has come, so that an export needs the memory of a layer. Source: the format's
description in the README of huggingface/safetensors.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from megatron_yuyuan.checkpoint.hf_format import PARAMETER_PREFIX, huggingface_tensor
from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.faults import fault_point
from megatron_yuyuan.model.gpt2 import GPT2

SHARD_BYTES = 5 * 10**9
"""Of a file: what the Hugging Face Hub and transformers expect of large models."""
INDEX = "model.safetensors.index.json"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
ALIGNMENT = 8
"""Bytes that a header's length is a multiple of."""


def write_shards(
    directory: Path,
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write weights under our names as Hugging Face's files, divided in the order of the model.

    One file is model.safetensors; several are model-00001-of-00002.safetensors and an index. Within a file
    tensors stand by name, as the library orders those of one dtype: the bytes are those that it writes.
    """
    with torch.device("meta"):
        model = GPT2(config).to(dtype)
    planned = {n: huggingface_tensor(n, t, config) for n, t in model.state_dict().items()}
    shards = _plan({name: tensor.nbytes for name, tensor in planned.items()}, shard_bytes)
    where: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (directory / file).open("wb") as stream:
            stream.write(
                _header({PARAMETER_PREFIX + name: planned[name] for name in sorted(names)})
            )
            for name in sorted(names):
                tensor = huggingface_tensor(name, weights[name], config).to(dtype)
                stream.write(tensor.flatten().view(torch.uint8).numpy().data)
                fault_point("convert.in_file")
        where |= {PARAMETER_PREFIX + name: file for name in names}
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in planned.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _plan(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in order, cut where a file would grow beyond the limit; a larger tensor has its own."""
    shards: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def _header(tensors: dict[str, Tensor]) -> bytes:
    """What stands before the bytes of these tensors, which follow in this order."""
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
