"""What no rule keeps is removed, once the newer one is on the disk, and nothing else is."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny import TINY

from megatron_yuyuan.checkpoint import retention
from megatron_yuyuan.checkpoint.dcp import load_tensors, save_checkpoint
from megatron_yuyuan.checkpoint.newest import newest_before, newest_whole
from megatron_yuyuan.checkpoint.retention import best_checkpoint, remove_superseded
from megatron_yuyuan.config import CheckpointConfig
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.resolve import require_validation
from megatron_yuyuan.validation import validate
from megatron_yuyuan.watch.saved import TRACKER, find_checkpoint

LOSSES = {100: 5.0, 200: 3.0, 300: None, 400: 4.0, 500: 3.0, 600: 4.5}


@pytest.fixture
def saved(tmp_path) -> Path:
    """A run directory with a checkpoint of each iteration, and its validation loss."""
    for iteration, loss in LOSSES.items():
        save_checkpoint(tmp_path, iteration, {"a": torch.ones(2)}, {"validation_loss": loss})
    return tmp_path


def left(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("iter_")) for path in directory.glob("iter_*"))


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({}, [100, 200, 300, 400, 500, 600]),
        ({"save_retain_interval": 300}, [300, 600]),
        ({"save_retain_interval": 400}, [400, 600]),
        ({"keep_last": 1}, [600]),
        ({"keep_last": 3}, [400, 500, 600]),
        ({"keep_last": 9}, [100, 200, 300, 400, 500, 600]),
        ({"keep_best": 1}, [500, 600]),
        ({"keep_best": 3}, [200, 400, 500, 600]),
        ({"keep_last": 2, "keep_best": 1, "save_retain_interval": 200}, [200, 400, 500, 600]),
    ],
    ids=str,
)
def test_a_checkpoint_that_one_rule_keeps_is_kept(saved, rules, kept):
    newest = saved / "iter_0000600"
    removed = remove_superseded(newest, CheckpointConfig(**rules), None)
    assert left(saved) == kept
    assert [path.name for path in removed] == [f"iter_{i:07d}" for i in LOSSES if i not in kept]
    assert find_checkpoint(saved) == newest
    assert (saved / TRACKER).read_text() == "600"


def test_the_best_is_the_latest_of_lowest_loss(saved, tmp_path_factory):
    assert best_checkpoint(saved, 900) == (saved / "iter_0000500", 3.0)
    assert best_checkpoint(saved, 400) == (saved / "iter_0000200", 3.0)  # 500 was taken back
    shutil.rmtree(saved / "iter_0000500")
    assert best_checkpoint(saved, 900) == (saved / "iter_0000200", 3.0)
    without = tmp_path_factory.mktemp("without")
    save_checkpoint(without, 1, {"a": torch.ones(2)}, {"validation_loss": None})
    assert best_checkpoint(without, 900) is None


def test_where_the_run_started_from_stays(saved):
    started_from = Path(os.path.relpath(saved / "iter_0000200"))
    remove_superseded(saved / "iter_0000600", CheckpointConfig(keep_last=1), started_from)
    assert left(saved) == [200, 600]


def test_only_whole_checkpoints_of_the_past_are_removed(saved, tmp_path_factory):
    """Not later ones, which a run taken back had written; no links, no other names, nothing torn."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "iter_0000200"
    shutil.move(saved / "iter_0000200", elsewhere)
    (saved / "iter_0000200").symlink_to(elsewhere)
    shutil.copytree(saved / "iter_0000100", saved / "iter_best")
    (saved / "iter_0000300" / "manifest.json").unlink()
    remove_superseded(saved / "iter_0000400", CheckpointConfig(keep_last=1), None)
    assert sorted(path.name for path in saved.glob("iter_*")) == [
        *("iter_0000200", "iter_0000300", "iter_0000400", "iter_0000500", "iter_0000600"),
        "iter_best",
    ]
    assert (elsewhere / "manifest.json").exists()


def test_a_state_that_cannot_be_read_is_not_among_the_best(saved):
    (saved / "iter_0000500" / "state.json").write_text("{")
    remove_superseded(saved / "iter_0000600", CheckpointConfig(keep_best=1), None)
    assert left(saved) == [200, 600]


def test_a_checkpoint_that_a_person_has_named_is_none_of_the_runs(saved):
    """With a tracker and without, at a restart and a rollback."""
    shutil.copytree(saved / "iter_0000100", saved / "iter_best")
    shutil.copytree(saved / "iter_0000100", saved / "iter_best.old")
    assert newest_whole(saved, strict=False).faults == ()
    (saved / TRACKER).unlink()
    assert newest_whole(saved, strict=True).path == find_checkpoint(saved) == saved / "iter_0000600"
    assert newest_before(saved / "iter_0000600").path == saved / "iter_0000500"


def test_iterations_are_counted_and_not_spelt(saved):
    for number in (9_999_999, 10_000_000):
        shutil.copytree(saved / "iter_0000100", saved / f"iter_{number}")
    (saved / TRACKER).unlink()
    assert find_checkpoint(saved).name == "iter_10000000"
    assert newest_before(saved / "iter_10000000").path == saved / "iter_9999999"


def die_in(place, name: str, directory: Path, monkeypatch) -> None:
    """Begin to remove what is superseded, and die in a call."""

    def die(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(place, name, die)
        with pytest.raises(KeyboardInterrupt):
            remove_superseded(directory / "iter_0000600", CheckpointConfig(keep_last=1), None)


def test_a_removal_that_is_killed_leaves_nothing_that_looks_whole(saved, monkeypatch):
    die_in(retention.shutil, "rmtree", saved, monkeypatch)
    assert not (saved / "iter_0000100.old" / "manifest.json").exists()
    assert find_checkpoint(saved, 100) is None
    save_checkpoint(saved, 700, {"a": torch.ones(2)}, {})
    assert not list(saved.glob("*.old"))
    assert left(saved) == [200, 300, 400, 500, 600, 700]


def test_one_whose_removal_was_killed_before_it_lost_a_file_comes_back(saved, monkeypatch):
    die_in(Path, "unlink", saved, monkeypatch)
    assert find_checkpoint(saved, 100) is None
    save_checkpoint(saved, 700, {"a": torch.ones(2)}, {})
    assert left(saved) == [100, 200, 300, 400, 500, 600, 700]
    tensors = {"a": torch.zeros(2)}
    load_tensors(find_checkpoint(saved, 100), tensors)
    assert tensors["a"].sum() == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save_retain_interval": 1500}, "save_retain_interval=1500 is not a multiple of "
         "save_interval=1000.*try: --save-retain-interval 2000"),
        ({"keep_best": 2, "eval_iters": 0}, "keep_best=2 with eval_interval=1000 and eval_iters=0"),
        ({"keep_best": 2, "eval_interval": 0}, "keep_best=2 with eval_interval=0"),
        ({"keep_best": 2, "eval_interval": 400}, "save_interval=1000 is not a multiple of "
         "eval_interval=400"),
        ({"keep_last": -1}, "keep_last=-1"),
    ],
)  # fmt: skip
def test_rules_that_cannot_work_are_refused(changes, message):
    saved = TINY.replace(save="run")
    validate(saved.replace(save_retain_interval=2000, keep_best=2, eval_interval=500), 1)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        validate(saved.replace(**changes), 1)


def test_the_best_of_what_nothing_judges_are_refused():
    require_validation(TINY, None)
    with pytest.raises(ConfigError, match="keep_best=2, but there is nothing to validate on"):
        require_validation(TINY.replace(keep_best=2), None)
