"""Saving checkpoints, beside torch.save of the same tensors, in one run on one machine:
docs/performance.md holds the results.

    python tools/benchmark/checkpoint.py [--gigabytes 1] [--ranks 2] [--rounds 5] [--folder DIR]

Every candidate ends with its bytes on the disk (fsync). Times are medians over the rounds, in each of
which every candidate runs once, in turn: compare the ratios, not the seconds. One thread a rank.

    one file       rank 0 writes all tensors with torch.save
    a file a rank  every rank writes its own part with torch.save, all at once
    dcp.save       torch's distributed checkpoint as it comes: no digests
    ours           a checkpoint: space checked, sha256 of every file, manifest, atomic rename
    ours, CRC32    the same with torch.save's CRC32, which ours leaves out, and no sha256
    ours, neither  the same without either
    ours, async    --async-save: the time until the checkpoint is there, and, of it, what training waits for
"""

import hashlib
import os
import shutil
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from megatron_yuyuan.checkpoint import dcp as dcp_module
from megatron_yuyuan.checkpoint import writer
from megatron_yuyuan.checkpoint.dcp import save_checkpoint
from megatron_yuyuan.checkpoint.saver import BackgroundSaver
from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import Config
from megatron_yuyuan.log import Log

ROWS, COLUMNS = 2048, 4096
"""Of one tensor: 33.6 MB in float32."""


def main(args: Sequence[str] | None = None) -> None:
    """Start the ranks; rank 0 prints a line for every candidate."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, metavar="N")
    parser.add_argument("--ranks", type=int, default=2, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--folder", metavar="DIR", help="on the disk to be measured")
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory(prefix="benchmark_", dir=options.folder) as folder:
        torch.multiprocessing.spawn(work, (options, Path(folder)), options.ranks)


def work(rank: int, options: Namespace, folder: Path) -> None:
    """One rank of the benchmark."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), options.ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=options.ranks)
    tensors = divided_tensors(options.gigabytes, options.ranks)
    whole = {name: tensor.full_tensor() for name, tensor in tensors.items()} if rank == 0 else {}
    for tensor in tensors.values():  # a collective, in which rank 0 has taken part already
        if rank:
            tensor.full_tensor()
    size = sum(tensor.numel() for tensor in tensors.values()) * 4
    seconds, blocked = measure(candidates(tensors, whole, folder), options.rounds, folder)
    if rank == 0:
        report(size, options, seconds, blocked)
        ours, with_crc32, neither = (
            statistics.median(seconds[name]) for name in ("ours", "ours, CRC32", "ours, neither")
        )
        print(
            f"  sha256: {seconds_to_digest(tensors):.3f} core seconds a rank; with it a save takes "
            f"{ours / with_crc32:.2f} x as long as with CRC32, {ours / neither:.2f} x as without either"
        )
    dist.destroy_process_group()


def divided_tensors(gigabytes: float, ranks: int) -> dict[str, DTensor]:
    """Random tensors of so many gigabytes in float32, their rows divided over the ranks."""
    mesh = init_device_mesh("cpu", (ranks,))
    count = max(1, round(gigabytes * 1e9 / (4 * ROWS * COLUMNS)))
    return {
        f"model.{i}": DTensor.from_local(torch.randn(ROWS // ranks, COLUMNS), mesh, [Shard(0)])
        for i in range(count)
    }


def candidates(
    tensors: dict[str, DTensor], whole: dict[str, Tensor], folder: Path
) -> dict[str, Callable[[], object]]:
    """Name -> what saves the tensors once, on every rank."""
    rank = dist.get_rank()
    local = {name: tensor.to_local() for name, tensor in tensors.items()}
    background = background_saver(tensors, folder / "async")

    def in_background() -> float:
        begun = time.perf_counter()
        background.save()
        blocked = time.perf_counter() - begun
        background.finish()
        return blocked

    def plain_dcp() -> None:
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder / "dcp"))

    def neither() -> None:
        with mock.patch.object(writer.hashlib, "sha256", Undigested):
            save_checkpoint(folder / "undigested", 1, tensors, {})

    def with_crc32() -> None:
        with mock.patch.object(dcp_module, "without_crc32", nullcontext):
            neither()

    return {
        "one file": lambda: torch_save(whole, folder / "whole.pt") if rank == 0 else None,
        "a file a rank": lambda: torch_save(local, folder / f"{rank}.pt"),
        "dcp.save": plain_dcp,
        "ours": lambda: save_checkpoint(folder / "ours", 1, tensors, {}),
        "ours, CRC32": with_crc32,
        "ours, neither": neither,
        "ours, async": in_background,
    }


class Undigested:
    """In place of hashlib.sha256: it looks at nothing."""

    def update(self, data) -> None: ...

    def hexdigest(self) -> str:
        return ""


def seconds_to_digest(tensors: dict[str, DTensor]) -> float:
    """Seconds of one core for the sha256 of what this rank holds."""
    begun = time.process_time()
    for tensor in tensors.values():
        hashlib.sha256(tensor.to_local().numpy().data).hexdigest()
    return time.process_time() - begun


def background_saver(tensors: Mapping[str, Tensor], folder: Path) -> BackgroundSaver:
    """A saver of a run that has nothing but these tensors."""
    state: Any = SimpleNamespace(
        mesh=SimpleNamespace(device=torch.device("cpu"), is_main=dist.get_rank() == 0),
        tensors=lambda: tensors,
        history=dict,
        iteration=1,
        consumed_samples=0,
        optimizer_steps=0,
    )
    tokenizer = SimpleNamespace(fingerprint="", vocab_size=0)
    config = Config().replace(save=str(folder), async_save=True)
    return BackgroundSaver(config, state, tokenizer, None, Log(None, False))


def torch_save(tensors: dict[str, Tensor], path: Path) -> None:
    """One file, on the disk when it returns."""
    with path.open("wb") as stream:
        torch.save(tensors, stream)
        stream.flush()
        os.fsync(stream.fileno())


def measure(
    candidates: dict[str, Callable[[], object]], rounds: int, folder: Path
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each candidate, from the first rank's start to the last one's end; and what training
    waits for in the background. The first round, whose pages and buffers are new, is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    blocked: list[float] = []
    for number in range(rounds + 1):
        for name, save in candidates.items():
            dist.barrier()
            begun = time.perf_counter()
            waited = save()
            dist.barrier()
            if number:
                seconds[name].append(time.perf_counter() - begun)
                blocked += [waited] if isinstance(waited, float) else []
            if dist.get_rank() == 0:
                clear(folder)
            dist.barrier()
    return seconds, blocked


def clear(folder: Path) -> None:
    """Remove what a candidate wrote, and let the disk come to rest."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix == ".pt":
            path.unlink()
    os.sync()


def report(
    size: int, options: Namespace, seconds: dict[str, list[float]], blocked: list[float]
) -> None:
    """A line for every candidate: median, range, and the ratio to both ways of torch.save."""
    print(f"\n{size / 1e9:.2f} GB, {options.ranks} ranks, median of {options.rounds}")
    one, each = (statistics.median(seconds[name]) for name in ("one file", "a file a rank"))
    for name, times in (seconds | {"ours, async: training waits": blocked}).items():
        median = statistics.median(times)
        print(
            f"  {name:<28} {median:7.3f} s {median / one:6.2f} x one file {median / each:6.2f} x a file "
            f"a rank   ({min(times):.3f} to {max(times):.3f})"
        )


if __name__ == "__main__":
    run_command(main)
