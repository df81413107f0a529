"""Which weights these are: what scores carry, so that no other weights are published with them."""

import hashlib
from pathlib import Path

from megatron_yuyuan.checkpoint.hf_directory import weight_files
from megatron_yuyuan.checkpoint.reading import reading
from megatron_yuyuan.watch.saved import MANIFEST


def identity(path: Path) -> dict[str, str]:
    """{"name", "sha256"} of a checkpoint of ours, whose manifest holds the digests of its files, or of the
    weight files of a Hugging Face directory. Copies are the same weights. Raises DataError and
    UnsafeError."""
    manifest = path / MANIFEST
    files = [manifest] if manifest.exists() else weight_files(path)
    whole = hashlib.sha256()
    for file in files:
        with reading(file), file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return {"name": path.name, "sha256": whole.hexdigest()}


def named(weights: dict[str, str]) -> str:
    """`iter_0000500 (0123456789ab)`, of what `identity` gives."""
    return f"{weights['name']} ({weights['sha256'][:12]})"


def run_directory(path: Path) -> Path:
    """Where lies what belongs to the weights: the run of a checkpoint, or the Hugging Face directory
    itself."""
    return path.parent if (path / MANIFEST).exists() else path
