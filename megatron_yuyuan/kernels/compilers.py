"""The compilers' part: CUDA C++ to one shared library that knows no torch, and its binding to the
torch that is installed.

setup.py loads this file by its path, where neither torch nor the package is installed: it imports the
standard library and `errors`, and nothing else.
"""

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from megatron_yuyuan.errors import KernelsError

SOURCES = Path(__file__).parent / "csrc"
LAST_LINES = 12
"""Of what a compiler says, so many lines are shown: its errors stand at the end."""


@dataclass(frozen=True)
class Target:
    """What the kernels are compiled for, and by which commands."""

    name: str
    compiler: str
    flags: tuple[str, ...]
    """Of the compiler that makes the kernels' library out of csrc/*.cu."""
    soname: str
    """The flag by which that compiler tells the linker the library's name."""
    binding_flags: tuple[str, ...]
    """Of g++, for csrc/binding.cpp."""
    torch_libraries: tuple[str, ...]
    """Those of torch's libraries that the binding calls."""


CUDA = Target(
    name="cuda",
    compiler="nvcc",
    flags=(
        *("-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", "--threads", "0"),
        *("-gencode", "arch=compute_80,code=sm_80"),  # A100
        *("-gencode", "arch=compute_90,code=sm_90"),  # H100, H200
        *("-gencode", "arch=compute_90,code=compute_90"),  # PTX, for those to come
    ),
    soname="-Xlinker=-soname={}",
    binding_flags=("-DUSE_CUDA",),
    torch_libraries=("torch_cpu", "torch_cuda"),
)
EMULATED = Target(
    name="emulated",
    compiler="g++",
    flags=(
        *("-O1", "-std=c++17", "-shared", "-fPIC", "-DYUYUAN_EMULATE"),
        "-U_FORTIFY_SOURCE",  # the emulator's fibers jump between stacks
        "-ffp-contract=off",  # a product and a sum are rounded one by one, as written
        "-fno-gnu-unique",  # another emulated library in the process keeps its own state
        *("-x", "c++"),
    ),
    soname="-Wl,-soname,{}",
    binding_flags=(),
    torch_libraries=("torch_cpu",),
)
"""The same sources on the CPU, for the tests: csrc/emulator.h plays the device."""
BINDING_FLAGS = (
    *("-O2", "-std=c++17", "-shared", "-fPIC"),
    "-DTORCH_TARGET_VERSION=0x020b000000000000",  # torch 2.11's stable ABI, and so every later one's
)


def find(compiler: str) -> str:
    """The path of a compiler. Raises KernelsError."""
    # the CUDA toolkit's own folder, which its installers do not put on PATH
    found = shutil.which(compiler) or shutil.which(compiler, path="/usr/local/cuda/bin")
    if found:
        return found
    raise KernelsError(
        f"the kernels cannot be compiled: there is no {compiler}",
        "it is neither on PATH nor in /usr/local/cuda/bin",
        f"put {compiler} on PATH, or --kernels auto",
    )


def is_there(compiler: str) -> bool:
    """Whether `find` would find it."""
    try:
        return bool(find(compiler))
    except KernelsError:
        return False


def run(command: list[str]) -> str:
    """Run a compiler; return what it prints. Raises KernelsError with the end of what it says."""
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if ended.returncode:
        said = (ended.stderr + ended.stdout).strip().splitlines()[-LAST_LINES:]
        raise KernelsError(
            f"the kernels cannot be compiled: {Path(command[0]).name} ended with {ended.returncode}",
            "\n       ".join(said) or "it does not say",
            "mend what it names, or --kernels auto",
        )
    return ended.stdout


def digest(*parts: str | bytes) -> str:
    """A short name for what was built from these parts."""
    hashed = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.hexdigest()[:16]


def library_name(target: Target, sources: Path = SOURCES) -> str:
    """`libyuyuan_cuda_0123456789abcdef.so`: the kernels' library of exactly these sources and flags.

    Also its name for the linker, so that a process that loads two of them mixes nothing up.
    """
    files = sorted(path for path in sources.iterdir() if path.suffix in (".cu", ".cuh", ".h"))
    parts = [part for path in files for part in (path.name, path.read_bytes())]
    return f"libyuyuan_{target.name}_{digest(*target.flags, *parts)}.so"


def compile_kernels(target: Target, folder: Path, sources: Path = SOURCES) -> Path:
    """csrc/*.cu -> folder/library_name. Raises KernelsError."""
    library = folder / library_name(target, sources)
    compiler = find(target.compiler)
    files = map(str, sorted(sources.glob("*.cu")))
    run([compiler, *target.flags, target.soname.format(library.name), "-o", str(library), *files])
    return library


def compile_binding(
    target: Target, library: Path, output: Path, torch: Path, sources: Path = SOURCES
) -> None:
    """csrc/binding.cpp -> output, which finds `library` in its own folder. `torch` is the folder of
    the installed package. Raises KernelsError."""
    run(
        [
            *(find("g++"), *BINDING_FLAGS, *target.binding_flags),
            *("-isystem", str(torch / "include"), str(sources / "binding.cpp"), "-o", str(output)),
            *(f"-L{library.parent}", f"-l:{library.name}", "-Wl,-rpath,$ORIGIN"),
            *(f"-L{torch / 'lib'}", *(f"-l{name}" for name in target.torch_libraries)),
        ]
    )
