"""tools/preprocess_data.py with units of a few kilobytes, so that a small input has many."""

import runpy
from pathlib import Path

from megatron_yuyuan.data import scan

if __name__ == "__main__":
    scan.UNIT_BYTES = 4000
    tool = Path(__file__).parents[2] / "tools" / "preprocess_data.py"
    runpy.run_path(str(tool), run_name="__main__")
