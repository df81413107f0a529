"""Megatron-core's `torch_dist` directories, read and written, in one process and a layer at a time.

    DIR/latest_checkpointed_iteration.txt     the number of an iteration, or `release`
    DIR/release/ or DIR/iter_0000500/         metadata.json says torch_dist; common.pt holds the arguments
                .metadata, *.distcp           torch's distributed checkpoint (DCP)

Tensors have the names of GPTModel's checkpoints. Layers are stacked, (L, ...) under one name, or each
has its number in its name (`non_homogeneous_layers`); both are read, stacked ones are written, which
is what GPTModel.sharded_state_dict() asks for. Source: Megatron-LM, megatron/core/dist_checkpointing.
"""

import argparse
import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from megatron_yuyuan.checkpoint.megatron import EXTRA, LAYERS, fused_name, megatron_name
from megatron_yuyuan.checkpoint.reading import quiet, unwrapped
from megatron_yuyuan.checkpoint.stored import StoredTensors
from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.watch.saved import TRACKER, checkpoint_path, tracked

RELEASE = "release"
"""The name of a checkpoint that is of no iteration: weights to start from."""
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""metadata.json."""


class TorchDist(Mapping[str, Tensor]):
    """The tensors of a torch_dist directory by the names of GPTModel.state_dict() (LayerNorms within the
    layer after them), each read when it is asked for. The optimizer's are passed over. Raises DataError
    and UnsafeError."""

    def __init__(self, path: Path):
        self._stored = StoredTensors(path)
        self._place: dict[str, tuple[str, int | None]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Name -> shape of every tensor."""
        for stored, shape in self._stored.shapes.items():
            if (
                not stored.startswith(("embedding.", "decoder.", "output_layer."))
                or EXTRA in stored
            ):
                continue
            rest = stored.removeprefix(LAYERS)
            if rest == stored or rest[0].isdigit():
                self._place[stored], self.shapes[stored] = (stored, None), shape
                continue
            for layer in range(shape[0]):
                name = f"{LAYERS}{layer}.{rest}"
                self._place[name], self.shapes[name] = (stored, layer), shape[1:]

    def __getitem__(self, name: str) -> Tensor:
        return self._stored.read(*self._place[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)


def chosen(directory: Path, iteration: int | None) -> Path:
    """Where the checkpoint of an iteration lies in a directory of Megatron's, without one that which the
    tracker names; the directory itself where there is no tracker."""
    if iteration is not None:
        return checkpoint_path(directory, iteration)
    with suppress(OSError):
        said = tracked(directory)
        if said is not None:
            return checkpoint_path(directory, int(said)) if said.isdigit() else directory / RELEASE
    return directory


def find_torch_dist(directory: Path, iteration: int | None = None) -> Path:
    """The checkpoint in a directory of Megatron's, the tracker's without an iteration, or the directory
    itself. Raises DataError."""
    path = chosen(directory, iteration)
    try:
        backend = json.loads((path / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        backend = {}
    if not isinstance(backend, dict) or backend.get("sharded_backend") != "torch_dist":
        raise DataError(
            f"no torch_dist checkpoint in {path}",
            "metadata.json with sharded_backend torch_dist is what makes one",
            "a directory that Megatron-LM saved with --ckpt-format torch_dist; --trust for mp_rank_* files",
        )
    return path


def read_arguments(path: Path) -> argparse.Namespace | None:
    """The arguments in common.pt, opened without running anything of it; None where they cannot be."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            common = torch.load(path / "common.pt", map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError):
        return None
    arguments = common.get("args") if isinstance(common, dict) else None
    return arguments if isinstance(arguments, argparse.Namespace) else None


def write_torch_dist(directory: Path, weights: Mapping[str, Tensor], config: ModelConfig) -> Path:
    """Write our weights as DIR/release, in an empty directory; returns it. One layer of one tensor is in
    memory at a time."""
    path = directory / RELEASE
    path.mkdir()
    with unwrapped(), quiet():
        dcp.save(
            {},
            storage_writer=dcp.FileSystemWriter(path),
            planner=_Stacked(weights, config),
            no_dist=True,
        )
    (path / "metadata.json").write_text(json.dumps(FORMAT), encoding="utf-8")
    arguments = {
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.mlp_size,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "norm_epsilon": config.layernorm_epsilon,
        "padded_vocab_size": config.padded_vocab_size,
        "make_vocab_size_divisible_by": config.make_vocab_size_divisible_by,
        "position_embedding_type": "learned_absolute",
        "add_position_embedding": True,
        "untie_embeddings_and_output_weights": False,
        "bias_gelu_fusion": True,
    }
    common = {"args": argparse.Namespace(**arguments), "checkpoint_version": 3.0, "iteration": 0}
    torch.save(common, path / "common.pt")
    (directory / TRACKER).write_text(RELEASE, encoding="utf-8")
    return path


class _Stacked(dcp.DefaultSavePlanner):
    """Plans one chunk for each of our tensors, those of layers as rows of stacked ones, and makes each
    when it is written."""

    def __init__(self, weights: Mapping[str, Tensor], config: ModelConfig):
        super().__init__(flatten_state_dict=False)
        self._weights, self._layers = weights, config.num_layers
        with torch.device("meta"):
            self._shapes = {n: tuple(t.shape) for n, t in GPT2(config).state_dict().items()}
        self._ours: dict[tuple[str, int], str] = {}

    def create_local_plan(self) -> SavePlan:
        return SavePlan([self._item(name, shape) for name, shape in self._shapes.items()])

    def _item(self, name: str, shape: tuple[int, ...]) -> WriteItem:
        theirs, layer, size = fused_name(megatron_name(name)), 0, shape
        offset = (0,) * len(shape)
        if theirs.startswith(LAYERS):
            number, rest = theirs.removeprefix(LAYERS).split(".", 1)
            theirs, layer = LAYERS + rest, int(number)
            size, offset, shape = (self._layers, *shape), (layer, *offset), (1, *shape)
        self._ours[theirs, layer] = name
        data = TensorWriteData(
            chunk=ChunkStorageMetadata(torch.Size(offset), torch.Size(shape)),
            properties=TensorProperties(dtype=torch.float32),
            size=torch.Size(size),
        )
        return WriteItem(
            MetadataIndex(theirs, torch.Size(offset)), WriteItemType.SHARD, tensor_data=data
        )

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        theirs, offset = write_item.index.fqn, write_item.index.offset
        stacked = theirs.startswith(LAYERS)
        assert offset is not None  # `_item` gave one
        tensor = self._weights[self._ours[theirs, offset[0] if stacked else 0]].detach().float()
        return tensor[None] if stacked else tensor
