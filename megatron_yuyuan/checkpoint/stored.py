"""Tensors of a DCP directory, whole, read from the disk when they are asked for and never kept.

What is asked for may be one row of a tensor: Megatron-core stacks its layers, (L, ...) of L layers,
and a layer at a time is all that a conversion should hold.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_yuyuan.checkpoint.manifest import verify
from megatron_yuyuan.checkpoint.metadata import SafeReader
from megatron_yuyuan.checkpoint.reading import DAMAGED_PICKLE, quiet, reading, unwrapped
from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.model.lora import factor_shapes, merge_factors


class StoredTensors:
    """The tensors of one DCP directory. Raises DataError, also when one is read, and UnsafeError."""

    def __init__(self, path: Path):
        self._path = path
        with reading(path / ".metadata", *DAMAGED_PICKLE):
            self._reader = SafeReader(path)
            described = self._reader.read_metadata().state_dict_metadata
            tensors = {n: t for n, t in described.items() if isinstance(t, TensorStorageMetadata)}
            self.shapes = {name: tuple(torch.Size(t.size)) for name, t in tensors.items()}
            """Name -> global shape."""
            self._dtypes = {name: tensor.properties.dtype for name, tensor in tensors.items()}

    def read(self, name: str, row: int | None = None) -> Tensor:
        """A tensor of shape S; or with `row`, of a tensor of shape (L, *S), that row, of shape S."""
        shape = self.shapes[name]
        first = 0 if row is None else row
        part = shape if row is None else (1, *shape[1:])
        chunk = ChunkStorageMetadata(torch.Size((first, *[0] * (len(shape) - 1))), torch.Size(part))
        with reading(self._path, *DAMAGED_PICKLE), unwrapped(), quiet():
            tensor = torch.empty(part, dtype=self._dtypes[name])
            dcp.load(
                {name: tensor},
                storage_reader=self._reader,
                planner=_OneChunk(name, chunk),
                no_dist=True,
            )
        return tensor if row is None else tensor[0]


class _OneChunk(dcp.DefaultLoadPlanner):
    """Reads one chunk of one tensor into a tensor of the chunk's shape, whatever chunks were saved."""

    def __init__(self, name: str, chunk: ChunkStorageMetadata):
        super().__init__()
        self._name, self._chunk = name, chunk

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None  # set_up_planner has been here
        saved = self.metadata.state_dict_metadata[self._name]
        assert isinstance(saved, TensorStorageMetadata)  # one of `shapes`
        return LoadPlan(create_read_items_for_chunk_list(self._name, saved, [self._chunk]))

    def lookup_tensor(self, index) -> Tensor:
        return self.state_dict[index.fqn]


def saved_factors(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """`factor_shapes` by the configuration of a checkpoint. Raises DataError: it names a matrix that a layer
    has not."""
    if unknown := set(config.lora_target_modules) - set(ModelConfig.lora_target_modules):
        raise DataError(
            f"the checkpoint's lora_target_modules has {min(unknown)}",
            "a layer has no such matrix",
            "the checkpoint as it was written",
        )
    return factor_shapes(config)


class StoredWeights(Mapping[str, Tensor]):
    """The weights of a checkpoint of ours by name, without `model.`; float32, LoRA's factors merged.

    Its files are compared with the manifest first. Raises DataError (damaged) and UnsafeError.
    """

    def __init__(self, path: Path, config: ModelConfig):
        verify(path)
        self._stored, self._config = StoredTensors(path), config
        self._factors = saved_factors(config)
        for name, shape in self._factors.items():
            if self._stored.shapes.get(f"model.{name}") != shape:
                raise DataError(
                    f"{path} holds no {name} of shape {shape}",
                    f"its state.json says lora_rank={config.lora_rank}",
                    "the checkpoint as it was written",
                )
        names = (name for name in self._stored.shapes if name.startswith("model."))
        self._names = [n for name in names if (n := name[len("model.") :]) not in self._factors]

    def __getitem__(self, name: str) -> Tensor:
        weight, module = self._stored.read(f"model.{name}"), name.rpartition(".")[0]
        beside = [factor for factor in self._factors if factor.rpartition(".")[0] == module]
        if name.endswith(".weight") and beside:
            factors = {factor: self._stored.read(f"model.{factor}") for factor in beside}
            merge_factors({name: weight}, factors, self._config)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
