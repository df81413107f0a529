"""How the GPU benchmarks measure, and how they keep what they measured. On the CPU everything runs too,
at tiny sizes, so that a test can run it; such results are marked and never published."""

import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from megatron_yuyuan.errors import KernelsError

FLUSHED = 1 << 28
"""Bytes written between two repetitions: several times any L2 cache."""
HEAD_START = 4_000_000
"""Cycles, about two milliseconds, that the GPU waits before a repetition: the CPU has launched it by then."""
COPIED = 1 << 30
"""Bytes of the tensor whose copy gives the bandwidth."""
PEERS = ("transformers", "megatron-core", "apex", "liger-kernel", "triton")
AGAIN = 75
"""Exit status of a stage that has work left: start the same command again."""


class Results:
    """The rows of one stage, in a JSON file that is replaced after every row.

    A row that is in the file is not measured again, so a stage that was cut off goes on where it was.
    A row that fails says why: it is a result too, unless it fails because our kernels cannot be had on
    the GPU. Then the stage fails, and measures it again.
    """

    def __init__(self, path: Path, device: torch.device, seconds: float):
        self.path, self.device = path, device
        self._end = time.monotonic() + seconds
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.about: dict = known.get("about", {})
        rows = known.get("rows", {}).items()
        self.rows: dict[str, dict] = {name: row for name, row in rows if not is_unbuilt(row)}
        self.left: list[str] = []
        """Rows for which there was no time."""

    def measure(self, name: str, work: Callable[[], dict]) -> None:
        """Add the row that `work` returns, unless it is there or the time is up."""
        if name in self.rows:
            return
        if time.monotonic() > self._end:
            self.left.append(name)
            return
        broken = False
        try:
            self.rows[name] = work()
        except Exception as error:
            # torch's word and our launchers': nothing more can be computed by this process
            broken = "CUDA error" in str(error) or "cudaError" in str(error)
            self.rows[name] = {"not_measured": _reason(error)}
            if (
                isinstance(error, KernelsError)
                and self.device.type == "cuda"
                and "apex" not in name
            ):
                self.rows[name]["agrees"] = False  # ours are what this is about
        self.save()
        print(f"{name}: {json.dumps(self.rows[name])}", flush=True)
        if broken:
            raise SystemExit(AGAIN)
        free_memory(self.device)

    def describe(self, about: dict) -> None:
        """Say on what the rows are measured; the first process of a stage does."""
        self.about = self.about or about
        self.save()

    def save(self) -> None:
        text = json.dumps({"about": self.about, "rows": self.rows}, indent=1)
        unfinished = self.path.with_name(f"unfinished_{self.path.name}")
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, self.path)

    def finish(self) -> None:
        """End the process: status 0; AGAIN with rows left; 1 where a row's `agrees` says that a result is
        wrong."""
        if self.left:
            print(f"no time for {len(self.left)} rows: {', '.join(self.left)}", flush=True)
            raise SystemExit(AGAIN)
        wrong = [name for name, row in self.rows.items() if not row.get("agrees", True)]
        if wrong:
            raise SystemExit(f"wrong results: {', '.join(wrong)}")


def is_unbuilt(row: dict) -> bool:
    """Whether a row says that there were no kernels to measure."""
    return "not_measured" in row and not row.get("agrees", True)


def _reason(error: Exception) -> str:
    """One line: what it was, and the beginning of what it says."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def free_memory(device: torch.device) -> None:
    """Give back what the last row held, and forget its peak."""
    gc.collect()  # FSDP2's units and their hooks refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def median_seconds(
    work: Callable[[], object], device: torch.device, repetitions: int = 20
) -> float:
    """Median time of `work` on a device, after three runs that do not count. On CUDA by events, with
    the L2 cache overwritten before every repetition."""
    for _ in range(3):
        work()
    if device.type == "cpu":
        return statistics.median(_cpu_seconds(work) for _ in range(3))
    flushed = torch.empty(FLUSHED, dtype=torch.uint8, device=device)
    events = [
        tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(repetitions)
    ]
    for begin, end in events:
        flushed.zero_()
        torch.cuda._sleep(HEAD_START)
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize(device)
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3


def _cpu_seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy of a large tensor: what a kernel bound by memory
    is held against."""
    size = COPIED if device.type == "cuda" else 1 << 20
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device)


def matmul_rate(device: torch.device, m: int, k: int, n: int, stored: str = "NN") -> float:
    """FLOP per second of a bfloat16 product (m, k) (k, n) of random numbers (zeros would save power
    and run at a higher clock). stored: of each factor, N for by its rows, T for by its columns."""
    a, b = (
        torch.randn(rows, columns, device=device, dtype=torch.bfloat16)
        for rows, columns in (
            (m, k) if stored[0] == "N" else (k, m),
            (k, n) if stored[1] == "N" else (n, k),
        )
    )
    a, b = (x if by == "N" else x.t() for x, by in zip((a, b), stored, strict=True))
    out = torch.empty(m, n, device=device, dtype=torch.bfloat16)
    return 2 * m * k * n / median_seconds(lambda: torch.mm(a, b, out=out), device)


def ceilings(device: torch.device) -> dict:
    """What the machine can do, measured now: copy bandwidth, and the rate of a large product."""
    side = 8192 if device.type == "cuda" else 64
    return {
        "copy_bytes_per_second": copy_bandwidth(device),
        "matmul_flops_per_second": matmul_rate(device, side, side, side),
    }


def describe_machine(device: torch.device) -> dict:
    """Date, versions, device, and its clocks and power limit as nvidia-smi names them."""
    cuda = device.type == "cuda"
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        **{name: package_version(name) for name in PEERS},
        "clocks": _clocks() if cuda else None,
    }


def package_version(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _clocks() -> str | None:
    """`name, driver, SM clock, memory clock, largest SM clock, power limit` of every GPU."""
    fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
