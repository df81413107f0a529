"""A failure to read a file becomes a DataError that names the file, even while another is being written."""

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from megatron_yuyuan.errors import DataError

DAMAGED = (
    *(EOFError, ImportError, MemoryError, OverflowError, RuntimeError),
    *(AttributeError, IndexError, KeyError, TypeError, ValueError),
)
DAMAGED_PICKLE = (pickle.UnpicklingError, *DAMAGED)
"""What Python's unpickler and torch raise for bytes that are none of their own; with weights_only the first
means that there is more than tensors."""


@contextmanager
def reading(path: Path, *also: type[Exception]) -> Iterator[None]:
    """Raises DataError, naming `path`, where within it the system or a library refuses to read. also: more
    exceptions by which one does."""
    refusals: tuple[type[Exception], ...] = (OSError, SafetensorError, *also)
    try:
        yield
    except refusals as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]  # torch's go on for a page
        raise DataError(
            f"{path} cannot be read: {said}",
            "it is missing, damaged or incomplete",
            "a copy as it was written or published, its checksum compared",
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without DCP's remarks about running in one process, or about gloo, which are as intended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def unwrapped() -> Iterator[None]:
    """Within it what DCP wraps, tracebacks and all, in an exception of its own is raised as it was (by one
    process: one)."""
    try:
        yield
    except CheckpointException as error:
        [(cause, _)] = error.failures.values()
        raise cause from None
