"""Whether a checkpoint has a place: room for its bytes, in a directory that may be written to."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.filesize import decimal
from torch import Tensor

from megatron_yuyuan.checkpoint.ranks import Ranks
from megatron_yuyuan.data.files import existing_parent, free_bytes
from megatron_yuyuan.errors import DataError, SpaceError


def checkpoint_bytes(tensors: Mapping[str, Tensor], ranks: Ranks) -> int:
    """Bytes of all tensors of all ranks, each name once and whole. Headers, about a kilobyte a
    tensor, are left out: a place that lacks only these says so itself."""
    sizes: dict[str, int] = {}
    for part in ranks.all_gather_object(
        {n: t.numel() * t.element_size() for n, t in tensors.items()}
    ):
        sizes |= part
    return sum(sizes.values())


def require_space(directory: Path, needed: int) -> None:
    """Raises SpaceError where fewer than `needed` bytes are free for a checkpoint in a directory,
    which need not exist yet."""
    free = free_bytes(directory)
    if free < needed:
        raise no_space(directory, f"it takes {decimal(needed)}, {decimal(free)} are free")


def require_place(directory: Path, needed: int) -> None:
    """Raises DataError where nothing can be written in a directory, which need not exist yet, and
    SpaceError where not even one checkpoint fits. Leaves nothing there."""
    try:
        require_space(directory, needed)
        with tempfile.TemporaryFile(dir=existing_parent(directory)):
            pass
    except OSError as error:
        raise DataError(
            f"cannot write in {directory}: {error.strerror}",
            "the checkpoints of the run could not be saved there",
            "a --save directory that may be written to",
        ) from None


def no_space(place: Path, cause: str) -> SpaceError:
    """The error for a checkpoint that does not fit."""
    return SpaceError(
        f"no room for a checkpoint in {place}: {cause}",
        "nothing of it is kept; the previous checkpoint is intact",
        "free space there, a --save elsewhere, or --keep-last N, which removes older ones",
    )
