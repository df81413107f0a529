"""The checkpoints in a run's directory, by their names and without torch: which of them the next start goes
on from, says whoever outlives a rank too.

    SAVE/latest_checkpointed_iteration.txt      the newest one's number, Megatron-LM's file
    SAVE/iter_0000500/manifest.json             written last: what has it is whole
"""

import re
from contextlib import suppress
from pathlib import Path

TRACKER, MANIFEST = "latest_checkpointed_iteration.txt", "manifest.json"
ITERATION = re.compile(r"iter_(\d{7,})(?:\.old)?")
"""Name of a checkpoint's folder."""


def checkpoint_path(directory: str | Path, iteration: int) -> Path:
    """SAVE/iter_0000500."""
    return Path(directory) / f"iter_{iteration:07d}"


def iteration_of(path: Path) -> int:
    """500 of iter_0000500, also where it makes way (.old); -1 of any other name."""
    found = ITERATION.fullmatch(path.name)
    return int(found[1]) if found else -1


def tracked(directory: str | Path) -> str | None:
    """What the tracker says: an iteration's number, or Megatron-LM's `release`; None without a tracker.
    Raises OSError."""
    try:
        said = (Path(directory) / TRACKER).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return said.strip()[:18].decode("ascii", "replace")


def find_checkpoint(directory: str | Path, iteration: int | None = None) -> Path | None:
    """The whole checkpoint of an iteration, or None; without one, where the next start goes on: what the
    tracker names, or else the newest whole."""
    if iteration is not None:
        path = checkpoint_path(directory, iteration)
        return path if path in whole_checkpoints(directory) else None
    whole = {iteration_of(path): path for path in resumable_checkpoints(directory)}
    with suppress(OSError):
        said = tracked(directory) or ""
        if said.isdigit() and int(said) in whole:
            return whole[int(said)]
    return next(iter(whole.values()), None)


def resumable_checkpoints(directory: str | Path) -> list[Path]:
    """Whole checkpoints, the newest first; also one that a killed save had moved aside for another that
    never came."""
    old = (manifest.parent for manifest in Path(directory).glob(f"iter_*.old/{MANIFEST}"))
    made_way = [p for p in old if iteration_of(p) >= 0 and not p.with_suffix("").exists()]
    return sorted([*whole_checkpoints(directory), *made_way], key=iteration_of, reverse=True)


def whole_checkpoints(directory: str | Path) -> list[Path]:
    """Checkpoints with their manifest, in order; not one being written (.tmp) or replaced (.old), or that
    a person has named (iter_best)."""
    found = (p.parent for p in Path(directory).glob(f"iter_*/{MANIFEST}"))
    return sorted((p for p in found if p.suffix == "" and iteration_of(p) >= 0), key=iteration_of)
