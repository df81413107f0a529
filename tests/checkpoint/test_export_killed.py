"""Row E06: an export that is killed leaves a directory that loads, or none; and its source as it was."""

import importlib.util
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import save_run

from megatron_yuyuan.checkpoint.hf import export_directory
from megatron_yuyuan.checkpoint.model import load_model, open_model

TEXTS = ["Question:What is gout? answer: Gout is a disease."] * 4
POINTS = 10
RENAME = "os.rename"


def export(run: Path, target: Path, kill_at: int | None) -> list[str]:
    """Export a run, and die by SIGKILL when the system is asked for the given one of the files and names
    beside the target; return what it was asked for. Checked by our own reader, which imports less."""
    found, asked = importlib.util.find_spec, []
    importlib.util.find_spec = lambda name: None if name == "transformers" else found(name)

    def watch(event: str, arguments: tuple) -> None:
        names = [str(path) for path in arguments[:2] if isinstance(path, str | Path)]
        if any(name.startswith(str(target.parent)) for name in names):
            asked.append(event)
            if len(asked) - 1 == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    export_directory(open_model(run), target)
    return asked


def files(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_killed_export_is_absent_or_whole(ranks, tmp_path):
    run, target = tmp_path / "run", tmp_path / "export"
    save_run(run, TEXTS)
    before, expected = files(run), load_model(run).model.state_dict()
    asked = ranks.run(1, export, run, tmp_path / "whole", None)
    renamed = asked.index(RENAME)
    assert (
        renamed > 50 and asked[renamed + 1] == "open"
    )  # of the folder, to bring its new name to the disk
    points = [number * renamed // (POINTS - 2) for number in range(POINTS - 1)] + [renamed + 1]
    assert len(set(points)) == POINTS
    for point in points:
        with pytest.raises(RuntimeError, match="died without an answer"):
            ranks.run(1, export, run, target, point)
        assert target.exists() == (point > renamed), point
    assert files(run) == before
    found = load_model(target).model.state_dict()
    assert all(torch.equal(found[name][:256], expected[name][:256]) for name in expected)
    left = {path.name for path in tmp_path.iterdir()} - {"run", "whole", "export"}
    assert left and all(re.fullmatch(r"\.export\.[0-9a-f]{8}\.tmp", name) for name in left)
