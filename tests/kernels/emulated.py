"""The kernels of megatron_yuyuan/kernels/csrc on a CPU: compiled by a C++ compiler against
emulator.h, called with torch tensors.

    emulated.launch("yuyuan_layer_norm", torch.bfloat16, x, weight, bias, y, mean, rstd, 5, 24, 1e-5)

The argument types are read from launchers.h; the stream, which comes last, is left out. Every tensor
is passed as a copy between two margins of NaN: a kernel that writes beyond it is found out, one that
reads beyond it computes NaN.
"""

import atexit
import ctypes
import functools
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

import megatron_yuyuan.kernels

SOURCES = Path(megatron_yuyuan.kernels.__file__).parent / "csrc"
SANITIZERS = os.environ.get("YUYUAN_TEST_SANITIZERS", "")
"""What `-fsanitize=` gets; tests/kernels/test_emulator.py starts the tests again with it set."""

FLAGS = "-std=c++17 -fPIC -DYUYUAN_EMULATE -x c++".split()
FLAGS += ["-O0"] if SANITIZERS else ["-O1"]  # -O0 halves the time to compile with sanitizers
FLAGS += ["-ffp-contract=off"]  # __fmul_rn and __fadd_rn are two roundings
FLAGS += ["-U_FORTIFY_SOURCE"]  # which takes a jump between stacks for an attack
FLAGS += ["-fno-gnu-unique"]  # each of several libraries in a process has its own emulator
WARNINGS = "-Wall -Wextra -Werror -Wno-unknown-pragmas".split()

_ALL_SCHEDULES = ["forward", "reverse", "random", "warp_greedy"]
SCHEDULES = ["random"] if SANITIZERS else _ALL_SCHEDULES
_ALL_DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DTYPES = [torch.float32, torch.bfloat16] if SANITIZERS else _ALL_DTYPES
"""float16 takes the same path through memory as bfloat16."""
INVALID_VALUE, LAUNCH_FAILURE = 1, 719
MARGIN = 0 if SANITIZERS else 4096
"""Bytes on each side of a tensor; the address sanitizer has its own."""


class Dropout(ctypes.Structure):
    """yuyuan_dropout; `dropout` makes one."""

    _fields_ = [
        ("rows", ctypes.c_void_p),
        ("threshold", ctypes.c_uint32),
        ("scale", ctypes.c_float),
        ("key", ctypes.c_uint64),
        ("step", ctypes.c_uint32),
        ("site", ctypes.c_uint32),
    ]


C_TYPES = {
    "int": ctypes.c_int,
    "int64_t": ctypes.c_int64,
    "uint32_t": ctypes.c_uint32,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "yuyuan_dropout": Dropout,
}


def dropout(mask=None) -> Dropout:
    """The structure of a DropoutMask; of None: nothing is dropped."""
    if mask is None:
        return Dropout()
    kept = Dropout(None, mask.threshold, mask.scale, mask.key, mask.step, mask.site)
    kept.tensor = mask.rows.contiguous()  # kept alive by the structure
    kept.rows = kept.tensor.data_ptr()
    return kept


def run_compiler(*arguments: str | Path) -> None:
    """Runs g++."""
    command = shutil.which("g++")
    if command is None:
        pytest.skip("no C++ compiler (g++) to compile the kernels for the CPU")
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    arguments = [*map(str, arguments), *([f"-fsanitize={SANITIZERS}"] if SANITIZERS else [])]
    done = subprocess.run([command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compile_library(sources: list[Path], folder: Path, flags: list[str] = WARNINGS) -> ctypes.CDLL:
    """One shared library of `sources`; every file is compiled by itself, two at a time."""

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        run_compiler(*FLAGS, *flags, "-I", source.parent, "-I", SOURCES, "-c", source, "-o", target)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / "libkernels.so"
    run_compiler("-shared", *objects, "-o", library)
    return load(library)


def load(path: Path) -> ctypes.CDLL:
    """The library with the argument types of launchers.h."""
    library = ctypes.CDLL(str(path))
    for name, arguments in signatures().items():
        if hasattr(library, name):
            getattr(library, name).argtypes = arguments
    library.yuyuan_emulator_message.restype = ctypes.c_char_p
    return library


@functools.cache
def signatures() -> dict[str, list[type]]:
    """{launcher: the ctypes types of its arguments}, as declared in launchers.h."""
    text = re.sub(r"//.*", "", (SOURCES / "launchers.h").read_text())
    found = {}
    for name, arguments in re.findall(r"\bint (yuyuan_\w+)\(([^)]*)\);", text):
        found[name] = [
            ctypes.c_void_p if "*" in argument else C_TYPES[argument.split()[0]]
            for argument in arguments.split(",")
        ]
    return found


@functools.cache
def _compiled() -> ctypes.CDLL:
    """All kernels, compiled once per session."""
    folder = tempfile.mkdtemp(prefix="yuyuan_emulated_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return compile_library(sorted(SOURCES.glob("*.cu")), Path(folder))


_chosen: list[ctypes.CDLL] = []


def kernels() -> ctypes.CDLL:
    """What `launch` calls: all kernels, unless a test is `using` another library."""
    return _chosen[-1] if _chosen else _compiled()


@contextmanager
def using(library: ctypes.CDLL):
    """Launches inside it go to this library."""
    _chosen.append(library)
    try:
        yield
    finally:
        _chosen.pop()


@contextmanager
def schedule(
    name: str, seed: int = 0, multiprocessors: int = 2, library: ctypes.CDLL | None = None
):
    """Runs the launches inside it under this schedule, on a device of this size."""
    library = library or kernels()
    library.yuyuan_emulate(_ALL_SCHEDULES.index(name), seed, multiprocessors)
    try:
        yield
    finally:
        library.yuyuan_emulate(0, 0, 2)


class LaunchError(Exception):
    """A launcher that returned an error, with what the emulator said."""

    def __init__(self, name: str, code: int, message: str):
        super().__init__(f"{name} returned {code}: {message}")
        self.code = code


class OverrunError(Exception):
    """A kernel wrote beyond one of its tensors."""


def _with_margins(tensor: Tensor) -> Tensor:
    """(margin, tensor, margin) in bytes; the margins are NaN in every dtype."""
    content = tensor.contiguous().view(-1).view(torch.uint8)
    buffer = torch.full((content.numel() + 2 * MARGIN,), 0xFF, dtype=torch.uint8)
    buffer[MARGIN : MARGIN + content.numel()] = content
    return buffer


def launch(name: str, *arguments, library: ctypes.CDLL | None = None) -> None:
    """Calls a launcher. Tensors are passed as pointers, None as NULL, a torch dtype as its number;
    what the kernel wrote is in the tensors afterwards."""
    library = library or kernels()
    buffers = {i: _with_margins(a) for i, a in enumerate(arguments) if isinstance(a, Tensor)}
    plain = [_ALL_DTYPES.index(a) if isinstance(a, torch.dtype) else a for a in arguments]
    for i, buffer in buffers.items():
        plain[i] = buffer.data_ptr() + MARGIN
    code = getattr(library, name)(*plain, None)
    if code != 0:
        raise LaunchError(name, code, library.yuyuan_emulator_message().decode())
    for i, buffer in buffers.items():
        end = buffer.numel() - MARGIN
        if not (bool((buffer[:MARGIN] == 0xFF).all()) and bool((buffer[end:] == 0xFF).all())):
            raise OverrunError(f"{name} wrote beyond its argument {i}")
        tensor = arguments[i]
        tensor.copy_(buffer[MARGIN:end].view(tensor.dtype).view(tensor.shape))


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An output: NaN until a kernel has written it."""
    return torch.full(shape, float("nan"), dtype=dtype)
