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


def find_checkpoint(directory: str | Path, iteration: int | None = None) -> Path | None:
    """The whole checkpoint of an iteration; without one, what the tracker names, or else the newest
    whole; or None."""
    whole = whole_checkpoints(directory)
    if iteration is not None:
        path = checkpoint_path(directory, iteration)
        return path if path in whole else None
    with suppress(OSError, ValueError):
        path = checkpoint_path(
            directory, int((Path(directory) / TRACKER).read_text(encoding="utf-8"))
        )
        if path in whole:
            return path
    return whole[-1] if whole else None


def whole_checkpoints(directory: str | Path) -> list[Path]:
    """Checkpoints with their manifest, in order; not one being written (.tmp) or replaced (.old), or that
    a person has named (iter_best)."""
    found = (p.parent for p in Path(directory).glob(f"iter_*/{MANIFEST}"))
    return sorted((p for p in found if p.suffix == "" and iteration_of(p) >= 0), key=iteration_of)
