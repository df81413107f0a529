"""Which checkpoints of a run are kept, and how the others go.

With none of --save-retain-interval, --keep-last and --keep-best every checkpoint is kept. With some
of them a checkpoint is kept if any of these holds:

    the newest, and the one that the run started from     always
    iteration is a multiple of save_retain_interval       Megatron-LM's rule
    among the newest keep_last                            fairseq's --keep-last-epochs, torchtitan's keep_latest_k
    among the keep_best of lowest validation loss         fairseq's --keep-best-checkpoints, Lightning's save_top_k

A checkpoint's validation loss is that of an evaluation at its own iteration, and stands in its
state.json: where there was none, it is never among the best.
"""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from megatron_yuyuan.checkpoint.dcp import read_state
from megatron_yuyuan.config import CheckpointConfig
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.faults import fault_point
from megatron_yuyuan.watch.saved import MANIFEST, iteration_of, whole_checkpoints


def remove_superseded(
    newest: Path, checkpoint: CheckpointConfig, started_from: Path | None
) -> list[Path]:
    """Remove what no rule keeps of the whole checkpoints beside and before `newest`, which must be
    on the disk. Returns what it removed; raises OSError.

    Later iterations are left alone: they are of a run that was taken back. So is what is only a
    link, and what cannot be read.
    """
    last = iteration_of(newest)
    rules = checkpoint.save_retain_interval or checkpoint.keep_last or checkpoint.keep_best
    if not rules:
        return []
    past = _until(last, newest.parent)
    kept = _kept(past, checkpoint) | {last}
    superseded = [path for i, path in past.items() if i not in kept and not path.is_symlink()]
    if started_from:
        superseded = [path for path in superseded if path.resolve() != started_from.resolve()]
    for path in superseded:
        remove_checkpoint(path)
    return superseded


def best_checkpoint(directory: str | Path, last: int) -> tuple[Path, float] | None:
    """The checkpoint of lowest validation loss, of equal ones the latest, with that loss; None where none
    has one. Those after iteration `last` are of a run that was taken back."""
    found = _until(last, directory)
    losses = dict(_validation_losses(found))
    if not losses:
        return None
    best = _best_first(losses)[0]
    return found[best], losses[best]


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint so that a kill in between leaves nothing that looks whole and is not."""
    aside = path.with_name(path.name + ".old")
    os.rename(path, aside)
    fault_point("retention.moved_aside")
    (aside / MANIFEST).unlink()  # first: a whole .old would get its name back
    fault_point("retention.manifest_removed")
    shutil.rmtree(aside)
    fault_point("retention.removed")


def _until(last: int, directory: str | Path) -> dict[int, Path]:
    """The whole checkpoints of a directory by iteration, as far as that."""
    found = {iteration_of(path): path for path in whole_checkpoints(directory)}
    return {iteration: path for iteration, path in found.items() if iteration <= last}


def _kept(checkpoints: dict[int, Path], checkpoint: CheckpointConfig) -> set[int]:
    """The iterations that a rule keeps."""
    iterations = sorted(checkpoints)
    kept = set(iterations[-checkpoint.keep_last :]) if checkpoint.keep_last else set()
    if checkpoint.save_retain_interval:
        kept |= {i for i in iterations if i % checkpoint.save_retain_interval == 0}
    if checkpoint.keep_best:
        losses = dict(_validation_losses(checkpoints))
        kept |= set(_best_first(losses)[: checkpoint.keep_best])
    return kept


def _best_first(losses: dict[int, float]) -> list[int]:
    return sorted(losses, key=lambda iteration: (losses[iteration], -iteration))


def _validation_losses(checkpoints: dict[int, Path]) -> Iterable[tuple[int, float]]:
    for iteration, path in checkpoints.items():
        with suppress(DataError):
            loss = read_state(path).get("validation_loss")
            if loss is not None:
                yield iteration, loss
