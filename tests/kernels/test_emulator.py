"""The emulator: that it runs threads as CUDA may, and finds what CUDA would hang or corrupt on."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernels import emulated

PROBES = Path(__file__).parent / "probes.cu"
THREADS = 96


@pytest.fixture
def probes(tmp_path_factory):
    library = emulated.compile_library([PROBES], tmp_path_factory.mktemp("probes"))
    library.yuyuan_probe.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    library.yuyuan_probe_order.argtypes = [ctypes.c_void_p] * 3
    with emulated.using(library):
        yield library


def order_of(schedule, seed=1):
    """The numbers of the threads, in the order in which they ran."""
    order, following = torch.full((2 * THREADS,), -1, dtype=torch.int32), torch.zeros(1).int()
    with emulated.schedule(schedule, seed):
        emulated.launch("yuyuan_probe_order", order, following)
    return order.tolist()


def test_every_schedule_runs_every_thread_up_to_its_barrier_and_then_on(probes):
    once = list(range(THREADS))
    assert order_of("forward") == [*once, *once]
    assert order_of("reverse") == [*once[::-1], *once[::-1]]
    for seed in (1, 2):
        shuffled = order_of("random", seed)
        assert sorted(shuffled[:THREADS]) == sorted(shuffled[THREADS:]) == once
        assert shuffled[:THREADS] != once
    assert order_of("random", 1) == order_of("random", 1)
    assert order_of("random", 1) != order_of("random", 2)


def test_the_greedy_schedule_drives_a_warp_through_its_own_barriers(probes):
    order = order_of("warp_greedy")
    warps = [order[i : i + 64] for i in range(0, 2 * THREADS, 64)]
    assert all(warp == [*range(warp[0], warp[0] + 32)] * 2 for warp in warps)
    assert sorted(warp[0] for warp in warps) == [0, 32, 64]
    orders = {tuple(order_of("warp_greedy", seed)) for seed in range(8)}
    assert len(orders) > 1


@pytest.mark.parametrize("schedule", emulated.SCHEDULES)
def test_shuffles_exchange_within_the_warp(probes, schedule):
    to = emulated.poisoned(THREADS)
    with emulated.schedule(schedule):
        emulated.launch("yuyuan_probe", 4, to)
    assert torch.equal(to, torch.arange(96.0).view(3, 32).sum(-1).repeat_interleave(32))


@pytest.mark.parametrize(
    ("which", "kernel", "reason"),
    [
        (0, "some_return_before_the_barrier", "64 wait at __syncthreads, 0 at"),
        (1, "a_warp_waits_for_lanes_that_wait_for_the_block", "48 wait at __syncthreads, 48 at"),
        (2, "half_a_warp_shuffles", "48 shuffle part of a warp, 48 have returned"),
    ],
)
def test_a_launch_that_cannot_go_on_ends_with_the_name_of_its_kernel(probes, which, kernel, reason):
    to = emulated.poisoned(THREADS)
    with pytest.raises(emulated.LaunchError, match=reason) as failed:
        emulated.launch("yuyuan_probe", which, to)
    assert failed.value.code == emulated.LAUNCH_FAILURE
    assert kernel in str(failed.value)
    emulated.launch("yuyuan_probe", 4, to)  # the next launch is not disturbed
    assert to[0] == 496


def test_a_block_that_is_not_of_whole_warps_is_refused(probes):
    with pytest.raises(emulated.LaunchError, match="returned 9"):
        emulated.launch("yuyuan_probe", 5, emulated.poisoned(THREADS))


@pytest.mark.skipif(bool(emulated.SANITIZERS), reason="the address sanitizer finds it instead")
def test_a_write_beyond_a_tensor_is_found(probes):
    with pytest.raises(emulated.OverrunError, match="beyond its argument 1"):
        emulated.launch("yuyuan_probe", 3, emulated.poisoned(THREADS))


def test_the_types_of_arguments_are_those_of_the_header():
    signatures = emulated.signatures()
    assert len(signatures) >= 14
    pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    assert signatures["yuyuan_norm_blocks"] == [long, integer]
    assert signatures["yuyuan_bias_dropout_add"] == (
        [integer, *[pointer] * 4, emulated.Dropout, long, integer, pointer]
    )


SANITIZED = ["layer_norm", "residual", "gelu", "cross_entropy", "adamw", "causal_softmax"]
"""The tests that run once more under the sanitizers: one schedule, all kernels."""


@pytest.mark.skipif(bool(emulated.SANITIZERS), reason="this is the run under the sanitizers")
def test_every_kernel_under_the_address_and_undefined_behaviour_sanitizers(repository):
    found = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True
    ).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip("no address sanitizer (libasan) beside g++")
    files = [str(PROBES.parent / f"test_{name}.py") for name in SANITIZED]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=repository,
        env=os.environ
        | {
            "YUYUAN_TEST_SANITIZERS": "address,undefined",
            "LD_PRELOAD": f"{found} {found.replace('libasan.so', 'libstdc++.so')}",
            "ASAN_OPTIONS": "detect_leaks=0:malloc_context_size=0",  # leaks are Python's own
            "UBSAN_OPTIONS": "halt_on_error=1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_the_address_sanitizer_sees_through_the_fibers(tmp_path):
    """The same probe that writes one too far, found where it happens; a sum before it is not."""
    program = tmp_path / "probes"
    flags = [*emulated.FLAGS, "-fsanitize=address,undefined", "-I", emulated.SOURCES]
    emulated.run_compiler(*flags, PROBES, "-o", program)
    done = subprocess.run([program], capture_output=True, text=True)
    assert "sum 496, error 0\n" in done.stderr
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "writes_one_too_far" in done.stderr
