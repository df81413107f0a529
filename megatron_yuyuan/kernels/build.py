"""From csrc/ to torch.ops.yuyuan: the kernels' library and its binding, built once and kept.

`pip install` leaves the library beside this file if it found nvcc (setup.py); else the first use
builds it. The binding, a second's work, is always compiled at first use, against the torch that is
installed. Both go into a cache:

    ~/.cache/megatron_yuyuan/kernels/KEY/      library and binding; KEY names all they were made from
                                     KEY.lock  held while KEY is built

All ranks of a machine may ask at once: one builds, the others wait for its lock and find the result.
The lock is the process's, not the file's: however a builder ends, it is free. What a killed one leaves
is a folder under a temporary name, which the next one removes.
"""

import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron_yuyuan.errors import KernelsError
from megatron_yuyuan.kernels import compilers
from megatron_yuyuan.kernels.compilers import SOURCES, Target

BINDING = "binding.so"
INSTALLED = Path(__file__).parent
"""Where setup.py puts the kernels' library."""


@functools.cache
def load(target: Target) -> None:
    """Make torch.ops.yuyuan run on the target's device. Raises KernelsError."""
    load_binding(built(target, cache_directory()))


def load_binding(entry: Path) -> None:
    """Load what was built. Raises KernelsError."""
    try:
        torch.ops.load_library(str(entry / BINDING))
    except OSError as error:
        why = str(error.__cause__ or error)  # torch's own error names the file alone
        remedy = f"remove {entry} and start again, or --kernels auto"
        raise KernelsError("the kernels are built and cannot be loaded", why, remedy) from error


def cache_directory() -> Path:
    """Where what was built is kept, as the XDG base directory specification has it."""
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "megatron_yuyuan" / "kernels"


def built(target: Target, cache: Path, sources: Path = SOURCES) -> Path:
    """The folder with the kernels' library and its binding, built now if need be. Raises
    KernelsError."""
    prebuilt = INSTALLED / compilers.library_name(target, sources)
    entry = cache / _key(target, sources)
    if entry.exists():
        return entry
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(entry.with_suffix(".lock")):
            if not entry.exists():  # the one that held the lock before may have built it
                _build(target, entry, sources, prebuilt)
    except OSError as error:
        raise KernelsError(
            f"the kernels cannot be kept in {cache}",
            str(error),
            "XDG_CACHE_HOME=DIR, a place to write",
        ) from error
    return entry


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; wait for it as long as another process does."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _key(target: Target, sources: Path) -> str:
    """A name for what decides whether a build serves: sources, flags, torch. Not the compilers: a node
    without any can use what another one built."""
    binding = (*compilers.BINDING_FLAGS, *target.binding_flags, torch.__version__)
    code = (sources / "binding.cpp").read_bytes()
    return compilers.digest(compilers.library_name(target, sources), *binding, code)


def _build(target: Target, entry: Path, sources: Path, prebuilt: Path) -> None:
    """Make the entry of the cache under a temporary name, then give it its own. The lock is held."""
    for abandoned in entry.parent.glob(f"{entry.name}.partial*"):
        shutil.rmtree(abandoned, ignore_errors=True)  # its compiler may still be at work
    partial = Path(tempfile.mkdtemp(prefix=f"{entry.name}.partial", dir=entry.parent))
    try:
        if prebuilt.exists():
            library = Path(shutil.copy(prebuilt, partial))
        else:
            library = compilers.compile_kernels(target, partial, sources)
        torch_folder = Path(torch.__file__).parent
        compilers.compile_binding(target, library, partial / BINDING, torch_folder, sources)
        partial.rename(entry)
    except BaseException:
        shutil.rmtree(partial)
        raise
