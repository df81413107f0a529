"""The save directory: the same one for all ranks, room for the checkpoints, how fast it takes them."""

import math
import os
import platform
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile

from rich.filesize import decimal

from megatron_yuyuan.checkpoint.ranks import Ranks
from megatron_yuyuan.checkpoint.space import require_place
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.files import existing_parent, free_bytes
from megatron_yuyuan.doctor.findings import ERROR, OK, WARNING, Finding, name_ranks
from megatron_yuyuan.doctor.last_run import examine_last_run
from megatron_yuyuan.model.lora import factor_shapes

BLOCK = 1 << 20
WRITTEN_BLOCKS = 32
"""What every rank writes to measure the speed: 32 MiB, on the disk when the clock stops."""
SLOW_SECONDS = 300.0
"""A checkpoint that takes longer than this to write is worth a warning."""


def checkpoint_bytes(config: Config) -> int:
    """What a checkpoint will take: float32 weights, and two moments of those that are learned."""
    model = config.model
    learned = model.num_parameters
    if model.lora_rank:
        learned = sum(map(math.prod, factor_shapes(model).values()))
    frozen = model.num_parameters if model.lora_rank else 0
    return 4 * frozen + 12 * learned


def checkpoints_kept(config: Config) -> int:
    """How many checkpoints stay at the most; 1 where the length of the run is not known."""
    training, checkpoint = config.training, config.checkpoint
    steps = training.train_iters or training.train_samples // max(1, training.global_batch_size)
    interval, retain = checkpoint.save_interval, checkpoint.save_retain_interval
    saved = max(1, math.ceil(steps / interval)) if interval else 1
    if not (retain or checkpoint.keep_last or checkpoint.keep_best):
        return saved
    retained = steps // retain if retain else 0
    kept = retained + max(1, checkpoint.keep_last) + checkpoint.keep_best
    return min(saved, kept + 1) if steps else kept + 1  # the new one is written before one goes


def examine_storage(config: Config, resolved: bool) -> list[Finding]:
    """A collective; the findings are the same on every rank. resolved: the shape of the model is known,
    and so what a checkpoint takes. Leaves nothing behind. Raises DataError on every rank."""
    save = config.checkpoint.save
    if not save:
        why = "nothing of the run would be kept"
        return [Finding("save directory", WARNING, "there is no --save", why, "--save DIR")]
    ranks, needed = Ranks(), checkpoint_bytes(config) if resolved else 0
    ranks.on_first(lambda: require_place(Path(save), needed))
    seen = same_place(Path(save), ranks)
    if seen.level == ERROR:
        return [seen]
    taken = ranks.all_gather_object(seconds_to_write(existing_parent(Path(save))))
    if refused := [rank for rank, seconds in enumerate(taken) if isinstance(seconds, str)]:
        said = (
            f"{name_ranks(refused)}: cannot write {WRITTEN_BLOCKS} MiB there: {taken[refused[0]]}"
        )
        why, remedy = "a checkpoint is larger", "room there, or --save on another file system"
        return [seen, Finding("disk speed", ERROR, said, why, remedy)]
    speed = WRITTEN_BLOCKS * BLOCK * ranks.size / max(taken)
    free = ranks.on_first(lambda: free_bytes(Path(save)))
    last_run = ranks.on_first(lambda: examine_last_run(Path(save)))
    return [seen, *last_run, *room(config, free, needed, speed)]


def same_place(directory: Path, ranks: Ranks) -> Finding:
    """Whether every rank sees what rank 0 has written there."""
    folder = ranks.on_first(lambda: existing_parent(directory))
    with ExitStack() as files:

        def begin_file() -> str:
            return files.enter_context(NamedTemporaryFile(prefix=".doctor-", dir=folder)).name

        written = ranks.on_first(begin_file)
        seen = ranks.all_gather_object((platform.node(), Path(written).exists()))
    blind = [rank for rank, (_, sees) in enumerate(seen) if not sees]
    if blind:
        hosts = ", ".join(dict.fromkeys(seen[rank][0] for rank in blind))
        said = f"{name_ranks(blind)}: what rank 0 writes in {folder} is not there ({hosts})"
        why = "a checkpoint is one directory that all ranks write"
        return Finding(
            "save directory", ERROR, said, why, "--save on a file system that all hosts share"
        )
    said = (
        f"{directory} will be made in {folder}"
        if folder != directory.absolute()
        else str(directory)
    )
    return Finding("save directory", OK, f"{said}; all {ranks.size} ranks see the same")


def seconds_to_write(folder: Path) -> float | str:
    """Write a file without a name and bring it to the disk; what the system says where it refuses, since
    the other ranks must not wait for this one."""
    block = os.urandom(BLOCK)  # a file system may compress
    try:
        with TemporaryFile(dir=folder) as file:
            begun = time.perf_counter()
            for _ in range(WRITTEN_BLOCKS):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return time.perf_counter() - begun
    except OSError as error:
        return str(error.strerror)


def room(config: Config, free: int, needed: int, speed: float) -> list[Finding]:
    """How many checkpoints fit, and how long one takes."""
    space = f"{decimal(free)} free"
    rate = f"all ranks together write {speed / 1e6:,.0f} MB/s"
    if not needed:
        return [Finding("disk", OK, space), Finding("disk speed", OK, rate)]
    kept, seconds = checkpoints_kept(config), needed / speed
    said = f"{space}, a checkpoint takes {decimal(needed)}, the run keeps up to {kept:,}"
    disk = Finding("disk", OK, said)
    if free < kept * needed:
        remedy = (
            f"--keep-last {max(1, free // needed - 1)}, a longer --save-interval, another --save"
        )
        disk = Finding(
            "disk", WARNING, said, "the run would fill the disk and go on unsaved", remedy
        )
    said = f"{rate}: {seconds:,.1f} s a checkpoint"
    if seconds > SLOW_SECONDS and not config.checkpoint.async_save:
        why, remedy = "training waits while it is written", "--async-save, or a faster file system"
        return [disk, Finding("disk speed", WARNING, said, why, remedy)]
    return [disk, Finding("disk speed", OK, said)]
