"""Megatron-LM's legacy checkpoints: mp_rank_*/model_optim_rng.pt, a pickle for every tensor and pipeline
rank, which may run code when it is opened.

    iter_0000500/mp_rank_01/model_optim_rng.pt         tensor rank 1
    iter_0000500/mp_rank_01_002/model_optim_rng.pt     tensor rank 1 of pipeline rank 2

With virtual stages a file holds `model0`, `model1`, ...: every first stage of the ranks stands before every
second one.

So they are opened only where a person trusts them, by another process, which has no network where the
system allows to take it away (a warning says where not), and which leaves each one's tensors, and the
last one's arguments, behind.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_yuyuan.checkpoint.hf_directory import SafetensorsFiles
from megatron_yuyuan.checkpoint.megatron import LAYERS
from megatron_yuyuan.checkpoint.megatron_directory import chosen
from megatron_yuyuan.errors import DataError

FILE, ARGUMENTS = "model_optim_rng.pt", "arguments.json"
RANK = re.compile(r"mp_rank_(\d\d)(?:_(\d\d\d))?\.(\d+)$")
"""Tensor rank, pipeline rank (absent: 0) and virtual stage of a part in the scratch folder."""
CHUNK = re.compile(r"model(\d*)$")
"""The key of a file's tensors: `model`, or with virtual stages `model0`, `model1`, ..."""
RENAMED = {
    "language_model.": "",
    "transformer.": "decoder.",
    "encoder.": "decoder.",
    ".attention.": ".self_attention.",
    "query_key_value": "linear_qkv",
    "self_attention.dense": "self_attention.linear_proj",
    "post_attention_layernorm": "pre_mlp_layernorm",
    "dense_h_to_4h": "linear_fc1",
    "dense_4h_to_h": "linear_fc2",
    "decoder.final_norm": "decoder.final_layernorm",
    "input_norm": "input_layernorm",
    "post_attention_norm": "pre_mlp_layernorm",
}
"""What stands in names from before Megatron-core -> what stands there now, in this order."""
DIVIDED = {
    "word_embeddings.weight": 0,
    "linear_qkv.weight": 0,
    "linear_qkv.bias": 0,
    "linear_fc1.weight": 0,
    "linear_fc1.bias": 0,
    "linear_proj.weight": 1,
    "linear_fc2.weight": 1,
}
"""How a name ends -> the dim that tensor ranks share; any other tensor is whole on each of them."""
WITHOUT_NETWORK = """
import ctypes, runpy, sys
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
if sys.platform != "linux" or ctypes.CDLL(None).unshare(NEW_USER | NEW_NETWORK):
    print("warning: this system opens the pickles with its network", file=sys.stderr)
runpy.run_module("megatron_yuyuan.checkpoint.megatron_legacy", run_name="__main__")
"""
"""The program that opens the pickles. It enters an empty network, as Linux may allow to any user; only a
process of one thread can, so before torch is imported."""


def find_legacy(directory: Path, iteration: int | None = None) -> Path | None:
    """The directory with mp_rank_* in it, or None."""
    path = chosen(directory, iteration)
    return path if any(path.glob(f"mp_rank_*/{FILE}")) else None


class LegacyTensors(Mapping[str, Tensor]):
    """Tensors under GPTModel's names, whole, put together from the ranks' parts when asked for."""

    def __init__(self, parts: dict[str, list[tuple[SafetensorsFiles, str]]]):
        self._parts = parts
        self.shapes = {name: self._shape(name) for name in parts}

    def __getitem__(self, name: str) -> Tensor:
        parts = [files[theirs] for files, theirs in self._parts[name]]
        dim = _divided_dim(name)
        return parts[0] if dim is None else torch.cat(parts, dim)

    def _shape(self, name: str) -> tuple[int, ...]:
        shapes = [files.shape(theirs) for files, theirs in self._parts[name]]
        dim, whole = _divided_dim(name), list(shapes[0])
        if dim is not None:
            whole[dim] = sum(shape[dim] for shape in shapes)
        return tuple(whole)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _divided_dim(name: str) -> int | None:
    """The dim of a tensor that tensor ranks share; None where each has it whole."""
    return next((dim for end, dim in DIVIDED.items() if name.endswith(end)), None)


def open_legacy(
    path: Path, scratch: Path
) -> tuple[LegacyTensors, dict[str, tuple[int, ...]], argparse.Namespace]:
    """The tensors of all ranks, their shapes, and the arguments, by way of safetensors files in `scratch`.
    Runs whatever the files bring: a person must have said that they are trusted. Raises DataError."""
    program = [sys.executable, "-c", WITHOUT_NETWORK, str(path), str(scratch)]
    ended = subprocess.run(program, capture_output=True, text=True, check=False)
    for line in ended.stderr.splitlines():
        if line.startswith("warning:"):
            print(line, file=sys.stderr)
    if ended.returncode:
        raise _unreadable(path, (ended.stderr.strip().splitlines() or ["no reason given"])[-1])
    by_stage: dict[tuple[int, int], dict[int, SafetensorsFiles]] = {}
    for tensors in sorted(scratch.glob("mp_rank_*.safetensors")):
        match = RANK.match(tensors.stem)
        if not match:
            raise _unreadable(path / tensors.stem, "its name is not mp_rank_TT or mp_rank_TT_PPP")
        stage = by_stage.setdefault((int(match[3]), int(match[2] or 0)), {})
        stage[int(match[1])] = SafetensorsFiles([tensors])
    arguments = json.loads((scratch / ARGUMENTS).read_text(encoding="utf-8"))
    if arguments.pop("checkpoint_version", 0) < 2:
        raise _unreadable(
            path, "checkpoint_version is below 2, which orders the rows of QKV otherwise"
        )
    _require_every_rank(path, by_stage)
    stages = [[part for _, part in sorted(by_stage[s].items())] for s in sorted(by_stage)]
    joined = LegacyTensors(_join(stages))
    return joined, joined.shapes, argparse.Namespace(**arguments)


def _require_every_rank(path: Path, by_stage: Mapping[tuple[int, int], Mapping]) -> None:
    """Raises DataError where the file of a pipeline or tensor rank is missing between others."""
    pipeline = range(max(stage for _, stage in by_stage) + 1)
    tensor = range(max(rank for ranks in by_stage.values() for rank in ranks) + 1)
    for chunk in {chunk for chunk, _ in by_stage}:
        for stage in pipeline:
            missing = [rank for rank in tensor if rank not in by_stage.get((chunk, stage), {})]
            if missing:
                raise _unreadable(
                    path, f"pipeline rank {stage} of {len(pipeline)} lacks tensor rank {missing[0]}"
                )


def _join(stages: list[list[SafetensorsFiles]]) -> dict[str, list[tuple[SafetensorsFiles, str]]]:
    """GPTModel's name, layers counted over all stages, which come in the order of the model -> the part of
    every tensor rank."""
    parts: dict[str, list[tuple[SafetensorsFiles, str]]] = {}
    first = 0
    for ranks in stages:
        numbers = {0}
        for theirs in ranks[0]:
            name = modern_name(theirs)
            if match := re.match(rf"{re.escape(LAYERS)}(\d+)\.(.*)", name):
                numbers.add(int(match[1]) + 1)
                name = f"{LAYERS}{first + int(match[1])}.{match[2]}"
            if name != "output_layer.weight" and "word_embeddings_for_head" not in name:  # copies
                parts[name] = [(rank, theirs) for rank in ranks]
        first += max(numbers)
    return parts


def modern_name(name: str) -> str:
    """language_model.encoder.layers.0.self_attention.dense.bias ->
    decoder.layers.0.self_attention.linear_proj.bias"""
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} cannot be read: {why}",
        "it was named as a legacy checkpoint of Megatron-LM's",
        "the checkpoint as Megatron-LM saved it, or torch_dist",
    )


def main(path: Path, scratch: Path) -> None:
    """Open the pickles, with everything that they run, and write what a conversion needs of them."""
    for file in sorted(path.glob(f"mp_rank_*/{FILE}")):
        found = torch.load(file, map_location="cpu", weights_only=False)
        chunks = {key: match[1] or "0" for key in found if (match := CHUNK.match(key))}
        if not chunks:
            sys.exit(f"no model in {file.parent.name}/{file.name}")
        for key, number in chunks.items():
            part = scratch / f"{file.parent.name}.{number}.safetensors"
            save_file(dict(_flat(found[key], "")), part)
    plain = {
        name: value
        for name, value in vars(found.get("args", argparse.Namespace())).items()
        if isinstance(value, bool | int | float | str)
    }
    plain["checkpoint_version"] = found.get("checkpoint_version", 0)
    (scratch / ARGUMENTS).write_text(json.dumps(plain), encoding="utf-8")


def _flat(tree: Mapping, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of nested dictionaries, names joined by dots."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{name}", value.clone().contiguous()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
