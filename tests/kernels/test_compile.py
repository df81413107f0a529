"""The gate: nvcc compiles every kernel for both architectures without a warning, and keeps all of its
numbers in registers; g++ compiles the CUDA half of the binding, which no machine without a GPU runs."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from megatron_yuyuan.errors import KernelsError
from megatron_yuyuan.kernels import compilers

MOST_REGISTERS = {
    "cross_entropy": 40,
    "gelu": 40,
    "residual": 40,
    "adamw": 48,
    "layer_norm": 128,
    "causal_softmax": 168,
}
"""Of the 65,536 of a multiprocessor, to a thread. 40 leave room for 1,536 threads of 2,048, and 48 for
1,280: enough of them, at 16 bytes or more each, to keep the memory busy. The others hold whole rows in
registers, so that a thread waits for 4 to 32 reads at a time: 128 are 512 threads, 168 are 384."""


@dataclass(frozen=True)
class Usage:
    """What ptxas says of one kernel on one architecture."""

    kernel: str
    architecture: str
    stack: int
    """Bytes of local memory, which is not on the chip."""
    spills: int
    """Bytes stored to and loaded from it because registers ran out."""
    registers: int


_REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def usages(log: str) -> list[Usage]:
    """All kernels of what `-Xptxas -v` prints."""
    found = []
    for match in _REPORT.finditer(log):
        stack, stores, loads, registers = map(
            int, match.group("stack", "stores", "loads", "registers")
        )
        found.append(
            Usage(*match.group("kernel", "architecture"), stack, stores + loads, registers)
        )
    assert len(found) == log.count("Compiling entry function"), "a report was not understood"
    return found


def assert_fits(usage: Usage, registers: int) -> None:
    assert usage.stack == usage.spills == 0, f"{usage} keeps numbers in memory"
    assert usage.registers <= registers, f"{usage} is beyond {registers} registers"


ARCHITECTURES = [flag for flag in compilers.CUDA.flags if "code=sm_" in flag]
NOT_HERE = {"-shared", "--threads", "0", "-gencode"}
"""Of the library's flags: those that link it, that divide the work, and before an architecture."""


def compiled(source: Path, folder: Path) -> list[Usage]:
    """With the library's own flags, and warnings as errors. PTX has no registers and is left out."""
    plain = [flag for flag in compilers.CUDA.flags if "arch=" not in flag and flag not in NOT_HERE]
    architectures = [flag for name in ARCHITECTURES for flag in ("-gencode", name)]
    strict = ("-Werror", "all-warnings", "-Xptxas", "-v")
    output = ("-c", str(source), "-o", str(folder / f"{source.stem}.o"))
    command = [compilers.find("nvcc"), *plain, *architectures, *strict, *output]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return usages(ended.stdout + ended.stderr)


@pytest.mark.skipif(not compilers.is_there("nvcc"), reason="no nvcc to compile the kernels with")
def test_every_kernel_compiles_and_fits_in_its_registers(tmp_path):
    sources = sorted(compilers.SOURCES.glob("*.cu"), key=lambda source: -source.stat().st_size)
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda source: compiled(source, tmp_path), sources))
    for source, report in zip(sources, reports, strict=True):
        for usage in report:
            assert_fits(usage, MOST_REGISTERS[source.stem])
        kernels = [(usage.kernel, usage.architecture) for usage in report]
        assert len(set(kernels)) == len(kernels)
        names = {usage.kernel for usage in report}
        assert len(kernels) == len(ARCHITECTURES) * len(names)
        assert bool(kernels) == (source.stem in MOST_REGISTERS)


SPILLED = """\
ptxas info    : Compiling entry function '_Z8backwardI13__nv_bfloat16Li1EEvPKT_' for 'sm_80'
ptxas info    : Function properties for _Z8backwardI13__nv_bfloat16Li1EEvPKT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 39 registers, used 0 barriers, 396 bytes cmem[0]
ptxas info    : Compile time = 30.621 ms
ptxas info    : Compiling entry function '_Z8backwardI13__nv_bfloat16Li4EEvPKT_' for 'sm_80'
ptxas info    : Function properties for _Z8backwardI13__nv_bfloat16Li4EEvPKT_
    184 bytes stack frame, 176 bytes spill stores, 252 bytes spill loads
ptxas info    : Used 64 registers, used 0 barriers, 184 bytes cumulative stack size, 396 bytes cmem[0]
ptxas info    : Compile time = 60.158 ms
"""
"""What nvcc 13.0 said of the causal softmax when it was to leave room for 1,024 threads."""


def test_the_gate_sees_a_spill_and_too_many_registers():
    fits, spilled = usages(SPILLED)
    assert fits == Usage("_Z8backwardI13__nv_bfloat16Li1EEvPKT_", "sm_80", 0, 0, 39)
    assert (spilled.stack, spilled.spills, spilled.registers) == (184, 428, 64)
    assert_fits(fits, 39)
    with pytest.raises(AssertionError, match="beyond 38"):
        assert_fits(fits, 38)
    with pytest.raises(AssertionError, match="in memory"):
        assert_fits(spilled, 168)
    with pytest.raises(AssertionError, match="not understood"):
        usages(SPILLED.replace("spill loads", "loads"))


def parse_binding(sources: Path) -> None:
    """Compile the CUDA half of the binding as far as a machine without CUDA can. Raises KernelsError."""
    flags = (*compilers.BINDING_FLAGS, *compilers.CUDA.binding_flags, "-Wall", "-Wextra", "-Werror")
    headers = ("-isystem", str(Path(torch.__file__).parent / "include"))
    target = ("-fsyntax-only", str(sources / "binding.cpp"))
    compilers.run([compilers.find("g++"), *flags, *headers, *target])


@pytest.mark.skipif(not compilers.is_there("g++"), reason="no g++ to compile the binding with")
def test_the_binding_compiles_for_cuda(tmp_path):
    parse_binding(compilers.SOURCES)
    sources = shutil.copytree(compilers.SOURCES, tmp_path / "csrc")
    tensors = sources / "tensors.h"
    guarded = "accelerator::DeviceGuard guard;"
    assert guarded in tensors.read_text()
    tensors.write_text(tensors.read_text().replace(guarded, "accelerator::Guard guard;"))
    with pytest.raises(KernelsError, match="Guard"):
        parse_binding(sources)
