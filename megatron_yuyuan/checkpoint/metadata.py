"""DCP's .metadata, which is a pickle, read without running what a stranger put into it."""

import io
import pickle
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from megatron_yuyuan.errors import UnsafeError

_TENSOR_CLASSES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.planner": {
        "BytesIOWriteData",
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    },
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}
"""What DCP's .metadata is made of (Megatron-core adds the plan of saving); beside these it names
dtypes of torch."""
_MEGATRON_CLASSES = {
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"),
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreSavePlan"),
}
"""What some releases of Megatron-core add; nothing here needs it."""


class _Ignored:
    """Stands for an object that is not needed; nothing of it is imported or run."""

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state) -> None:
        pass


class SafeReader(dcp.FileSystemReader):
    """DCP's reader with its metadata opened safely, once, before DCP takes over. Raises UnsafeError, and what
    an unpickler does (`reading.DAMAGED_PICKLE`)."""

    def __init__(self, path: Path):
        super().__init__(path)
        # in memory first: then no length that it states can ask for more than there is
        content = io.BytesIO((path / ".metadata").read_bytes())
        self._metadata = _RestrictedUnpickler(content).load()
        if not isinstance(self._metadata, Metadata):
            raise TypeError("it describes no tensors")
        _require_inside(path, self._metadata)

    def read_metadata(self, *args, **kwargs) -> Metadata:
        self._metadata.storage_meta = self._metadata.storage_meta or StorageMeta()
        self._metadata.storage_meta.load_id = self.load_id
        return self._metadata


def _require_inside(path: Path, metadata: Metadata) -> None:
    """Raises UnsafeError where a tensor is said to lie in a file of another directory."""
    for place in (metadata.storage_data or {}).values():
        if Path(place.relative_path).name != place.relative_path:
            raise UnsafeError(
                f"{path / '.metadata'} names {place.relative_path!r}",
                "it lies outside the checkpoint",
                "a checkpoint from a source you trust",
            )


class _RestrictedUnpickler(pickle.Unpickler):
    """Opens DCP's own .metadata, a pickle, and nothing in it but the classes that describe
    tensors."""

    def find_class(self, module: str, name: str):
        if (module, name) in _MEGATRON_CLASSES:
            return _Ignored
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _TENSOR_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise UnsafeError(
            f"a checkpoint's .metadata names {module}.{name}",
            "opening it would run code",
            "a checkpoint from a source you trust",
        )
