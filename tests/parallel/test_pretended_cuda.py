"""No tensor of a step is on another device than those it meets: the code of a GPU, without one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parents[1] / "pretended_cuda"
CASES = "float32 bf16 fp16 fp8 flash lora documents recomputed briefly interleaved".split()


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """device.cpp for the torch that is installed."""
    compiler, at = shutil.which("g++"), Path(torch.__file__).parent
    if compiler is None or torch.version.cuda:
        pytest.skip("needs g++, and a torch built without CUDA")
    if not torch.__version__.startswith("2.13."):
        pytest.skip(
            f"device.cpp is written for the C++ of torch 2.13, and this is {torch.__version__}"
        )
    made = tmp_path_factory.mktemp("pretended_cuda") / "device.so"
    of_torch = [
        "-isystem",
        at / "include",
        f"-L{at}/lib",
        f"-Wl,-rpath,{at}/lib",
        "-lc10",
        "-ltorch_cpu",
    ]
    source = HERE / "device.cpp"
    built = subprocess.run(
        [compiler, "-std=c++20", "-fPIC", "-shared", "-o", made, source, *of_torch],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return made


def take_steps(library: Path, *cases: str) -> subprocess.CompletedProcess:
    """steps.py, with the library loaded before torch."""
    paths = os.pathsep.join(map(str, (HERE.parent, HERE.parents[1])))
    here = {"LD_PRELOAD": str(library), "PYTHONPATH": paths, "YUYUAN_TEST_DEVICE": "cpu"}
    return subprocess.run(
        [sys.executable, HERE / "steps.py", *cases],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | here | {"OMP_NUM_THREADS": "1"},
    )


def test_every_tensor_of_a_step_is_on_the_device(library):
    ended = take_steps(library, *CASES)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.split() == CASES


def test_a_tensor_left_on_the_host_would_be_seen(library):
    ended = take_steps(library, "astray")
    assert ended.returncode and "FakeTensorDeviceMismatchError" in ended.stderr
