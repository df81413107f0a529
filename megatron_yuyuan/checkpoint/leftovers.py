"""What runs that were killed left beside their checkpoints."""

import os
import shutil
from pathlib import Path

from megatron_yuyuan.watch.saved import MANIFEST


def remove_leftovers(directory: Path) -> None:
    """Remove checkpoints begun and never finished (.tmp), or being removed (.old). Nobody may be
    writing there. Raises OSError.

    A whole .old whose name is free gets it back: the run was killed after this one had made way,
    and before the one that replaces it came.
    """
    for old in directory.glob("iter_*.old"):
        name = old.with_suffix("")
        if (old / MANIFEST).exists() and not name.exists():
            os.rename(old, name)
        else:
            shutil.rmtree(old, ignore_errors=True)
    for partial in directory.glob("iter_*.tmp"):
        shutil.rmtree(partial, ignore_errors=True)
