"""Damaged files are refused, passed over with a warning, or harmless; none is read silently.

The matrix is in corruption.py. A short part of it is run always, the whole with `-m slow`.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from corruption import Damage, Subject, checkpoint, make_run, matrix, subjects, table, verdict

from megatron_yuyuan.checkpoint.dcp import TRACKER, read_run, save_checkpoint
from megatron_yuyuan.checkpoint.manifest import MANIFEST, digests, verify, verify_sizes
from megatron_yuyuan.checkpoint.newest import newest_before, newest_whole
from megatron_yuyuan.checkpoint.space import checkpoint_bytes  # noqa: F401
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.errors import ConfigErrors, DamagedError, DataError
from megatron_yuyuan.resolve import fall_back, starting_point
from megatron_yuyuan.validation import validate
