"""The newest checkpoint that a run can go on from, and what was wrong with those after it."""

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from megatron_yuyuan.checkpoint.dcp import require_checkpoint
from megatron_yuyuan.checkpoint.manifest import verify_sizes
from megatron_yuyuan.errors import DamagedError
from megatron_yuyuan.watch.saved import (
    MANIFEST,
    TRACKER,
    iteration_of,
    resumable_checkpoints,
    tracked,
)


@dataclass(frozen=True)
class Newest:
    """What a directory offers to a run that is continued."""

    path: Path | None
    """None where nothing was ever saved."""
    faults: tuple[str, ...] = ()
    """What was passed over on the way to it, and why."""


def newest_whole(directory: str | Path, strict: bool) -> Newest:
    """The checkpoint that the tracker names or, if that is damaged, the newest before it that is not, as
    far as sizes and state.json tell; without a tracker the newest of all.

    Raises DamagedError: nothing whole is left of what was saved; and, if `strict`, where the first choice
    is not to be had.
    """
    directory = Path(directory)
    whole = resumable_checkpoints(directory)
    first, fault = _first_choice(directory, whole)
    if fault and strict:
        _refuse(
            directory,
            [fault],
            "a whole one, by --ckpt-step; a run that is continued goes on without --strict",
        )
    faults = [fault] if fault else []
    if later := [path.name for path in whole[:first]]:
        faults.append(f"{TRACKER} says {whole[first].name}: {', '.join(later)} are left alone")
    return _first_sound(directory, whole[first:], strict, faults)


def named_checkpoint(directory: str | Path, iteration: int | None = None) -> Path:
    """The checkpoint of an iteration, None the first choice and no other: what a person opens by name to use
    its weights. Raises DataError."""
    if iteration is not None:
        return require_checkpoint(directory, iteration)
    return newest_whole(directory, strict=True).path or require_checkpoint(directory)


def newest_before(damaged: Path) -> Newest:
    """The same of those before a checkpoint whose tensors were found to be damaged."""
    whole = resumable_checkpoints(damaged.parent)
    older = [path for path in whole if iteration_of(path) < iteration_of(damaged)]
    return _first_sound(damaged.parent, older, False, [])


def _first_sound(
    directory: Path, candidates: list[Path], strict: bool, faults: list[str]
) -> Newest:
    for path in candidates:
        try:
            verify_sizes(path)
            return Newest(path, tuple(faults))
        except DamagedError as error:
            if strict:
                raise
            faults = [*faults, error.what]
    traces = [path for path in directory.glob("iter_*") if path.name.split("_")[1].isdigit()]
    if faults or traces:  # a .tmp is no trace: no save has ended
        faults = faults or [f"no iter_* there has its {MANIFEST}"]
        _refuse(directory, faults, "restore it from a copy, or start a new run in another --save")
    return Newest(None)


def _first_choice(directory: Path, whole: list[Path]) -> tuple[int, str]:
    """Where in `whole` the tracker's checkpoint stands, and what is wrong with the tracker, if anything.
    Those before it are of a run that was taken back."""
    try:
        said = tracked(directory)
    except OSError as error:
        return 0, f"{TRACKER} cannot be read: {error.strerror}"
    iterations = [iteration_of(path) for path in whole]
    if said is None:
        return 0, ""
    if said.isdigit() and int(said) in iterations:
        return iterations.index(int(said)), ""
    return 0, f"{TRACKER} says {said!r}, and that is not there"


def _refuse(directory: Path, faults: list[str], remedy: str) -> NoReturn:
    why = "the run would continue from a different point than it had reached"
    raise DamagedError(f"{directory}: {'; '.join(faults)}", why, remedy)
