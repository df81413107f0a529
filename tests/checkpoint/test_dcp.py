"""A checkpoint exists whole or not at all, and says so when it is damaged."""

import errno
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.checkpoint import dcp as dcp_module
from megatron_yuyuan.checkpoint.dcp import (
    FORMAT_VERSION,
    load_tensors,
    read_state,
    require_checkpoint,
    save_checkpoint,
)
from megatron_yuyuan.checkpoint.leftovers import remove_leftovers
from megatron_yuyuan.checkpoint.manifest import digests
from megatron_yuyuan.checkpoint.writer import without_crc32
from megatron_yuyuan.errors import DataError, SpaceError, UnsafeError
from megatron_yuyuan.watch.saved import TRACKER, checkpoint_path, find_checkpoint

CONFIG = TINY.replace(num_layers=4)


def losses(trainer, steps: int) -> list[float]:
    return [trainer.step(RandomText())["lm_loss"] for _ in range(steps)]


def train_and_save(config, directory):
    """Two steps, a checkpoint, and the losses of two more."""
    trainer = build_trainer(config)
    losses(trainer, 2)
    save_checkpoint(directory, 2, trainer.state.tensors(), {"consumed_samples": 16})
    return losses(trainer, 2)


def load_and_train(config, directory):
    """The losses of two steps after a checkpoint is loaded into a fresh state."""
    trainer = build_trainer(config)
    assert not trainer.state.optimizer.state, "a fresh optimizer has no state to load into"
    load_tensors(find_checkpoint(directory), trainer.state.tensors())
    trainer.state.continue_after(2, 16, 2)
    for parameter in trainer.state.stages[0].parameters():
        state = trainer.state.optimizer.state[parameter]
        assert state["step"] == 2
        if state["exp_avg"].to_local().numel() > 64:
            assert state["exp_avg"].to_local().any()
            assert state["exp_avg_sq"].to_local().any()
    return losses(trainer, 2)


def test_the_old_one_goes_when_the_new_name_is_on_the_disk(tmp_path, monkeypatch):
    done = []
    for module, name in ((dcp_module, "to_disk"), (shutil, "rmtree")):
        call = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda path, *more, name=name, call=call, **other: (
                done.append((name, Path(path).name)),
                call(path, *more, **other),
            ),
        )
    for _ in range(2):
        save_checkpoint(tmp_path, 5, TENSORS, {})
    removed = done.index(("rmtree", "iter_0000005.old"))
    assert done[removed - 1] == ("to_disk", tmp_path.name)


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        (Layout(2, 2, 2, True), Layout()),
        (Layout(2, 2, 2, True), Layout(1, 2, 2)),
        (Layout(), Layout(2, 1, 2, True)),
        (Layout(1, 4, 1), Layout(4, 1, 1)),
    ],
    ids=str,
)
def test_any_layout_continues_what_any_layout_saved(ranks, tmp_path, saved, loaded):
    expected = ranks.run(saved.ranks, train_and_save, saved.of(CONFIG), tmp_path)
    actual = ranks.run(loaded.ranks, load_and_train, loaded.of(CONFIG), tmp_path)
    assert actual == pytest.approx(expected, rel=1e-6)


def forget_the_moments(config, directory):
    trainer = build_trainer(config)
    load_tensors(find_checkpoint(directory), trainer.state.tensors(with_moments=False))
    trainer.state.continue_after(2, 16, 0)
    return losses(trainer, 2)


def test_an_optimizer_loaded_empty_would_be_seen(ranks, tmp_path):
    expected = ranks.run(1, train_and_save, CONFIG, tmp_path)
    actual = ranks.run(1, forget_the_moments, CONFIG, tmp_path)
    assert actual[0] == pytest.approx(expected[0], rel=1e-6)
    assert abs(actual[1] / expected[1] - 1) > 1e-3


TENSORS = {"model.a": torch.arange(600.0).view(20, 30), "model.b": torch.ones(7)}


@pytest.fixture
def saved(tmp_path):
    """A run directory with checkpoints of iterations 3 and 5."""
    for iteration in (3, 5):
        save_checkpoint(tmp_path, iteration, TENSORS, {"note": iteration})
    return tmp_path


def load(path) -> dict[str, torch.Tensor]:
    tensors = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    load_tensors(path, tensors)
    return tensors


def test_what_was_saved_is_loaded_to_the_bit(saved):
    path = require_checkpoint(saved)
    assert path == checkpoint_path(saved, 5)
    assert all(torch.equal(t, TENSORS[n]) for n, t in load(path).items())
    assert read_state(path)["note"] == 5
    assert read_state(require_checkpoint(saved, 3))["note"] == 3
    assert not list(saved.glob("*.tmp"))


def written_by_torch() -> io.BytesIO:
    stream = io.BytesIO()
    torch.save({"weight": torch.arange(1000.0)}, stream)
    stream.seek(0)
    return stream


def test_sha256_takes_the_place_of_a_crc32_that_torch_never_looks_at(saved):
    with zipfile.ZipFile(next(require_checkpoint(saved).glob("*.distcp"))) as archive:
        assert archive.testzip(), "a tensor has a CRC32"
    with pytest.raises(OSError, match="no room"), without_crc32():
        raise OSError("no room")
    with zipfile.ZipFile(written_by_torch()) as archive:  # files that others write have theirs
        assert archive.testzip() is None
    damaged = bytearray(written_by_torch().getvalue())
    place = damaged.find(torch.arange(1000.0).numpy().tobytes())
    damaged[place] ^= 1
    assert not torch.equal(torch.load(io.BytesIO(damaged))["weight"], torch.arange(1000.0))


def test_saving_an_iteration_again_replaces_it(saved):
    save_checkpoint(saved, 5, TENSORS, {"note": "again"})
    assert read_state(require_checkpoint(saved))["note"] == "again"
    assert sorted(p.name for p in saved.iterdir()) == ["iter_0000003", "iter_0000005", TRACKER]


@pytest.mark.parametrize("content", ["", "garbage", "9", "5\n"])
def test_the_newest_whole_checkpoint_is_found_whatever_the_tracker_says(saved, content):
    (saved / TRACKER).write_text(content)
    assert find_checkpoint(saved) == checkpoint_path(saved, 5)


def test_a_checkpoint_without_its_manifest_does_not_exist(saved):
    (checkpoint_path(saved, 5) / "manifest.json").unlink()
    assert find_checkpoint(saved) == checkpoint_path(saved, 3)
    assert find_checkpoint(saved / "nowhere") is None
    with pytest.raises(DataError, match=r"no checkpoint of iteration 5 .*") as refused:
        require_checkpoint(saved, 5)
    assert refused.value.remedy == "--ckpt-step with one of 3"


def test_what_a_person_may_have_meant_is_said(saved, tmp_path):
    inside = checkpoint_path(saved, 5)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    for named, remedy in (
        (inside, f"the run that it belongs to: {saved} and --ckpt-step 5"),
        (tmp_path / "export", f"hf:{tmp_path}/export, if it is a model of Hugging Face's"),
        (tmp_path / "nowhere", "a run directory that holds iter_*/manifest.json"),
    ):
        with pytest.raises(DataError) as refused:
            require_checkpoint(named)
        assert refused.value.remedy == remedy
        assert ("no such directory" in refused.value.why) == (not named.exists())


def test_what_a_killed_save_left_goes_with_the_next(saved):
    (saved / "iter_0000004.tmp").mkdir()
    save_checkpoint(saved, 7, TENSORS, {})
    assert not list(saved.glob("*.tmp"))


@pytest.fixture
def replacement_killed(saved, monkeypatch):
    """The run directory where iteration 5 has made way for another 5, which has no name yet."""

    def die_at_the_second(source, target, rename=os.rename):
        if Path(source) == saved / "iter_0000005.tmp":
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(saved, 5, TENSORS, {"note": "again"})
    assert find_checkpoint(saved, 5) is None
    return saved


def test_one_that_made_way_for_nothing_gets_its_name_back(replacement_killed):
    remove_leftovers(replacement_killed)
    assert read_state(require_checkpoint(replacement_killed))["note"] == 5
    load(require_checkpoint(replacement_killed))
    names = sorted(p.name for p in replacement_killed.iterdir())
    assert names == ["iter_0000003", "iter_0000005", TRACKER]


def test_the_next_save_keeps_one_that_made_way_for_nothing(replacement_killed):
    save_checkpoint(replacement_killed, 7, TENSORS, {})
    assert read_state(require_checkpoint(replacement_killed, 5))["note"] == 5


def test_one_that_was_replaced_or_lost_its_manifest_goes(saved):
    shutil.copytree(checkpoint_path(saved, 5), saved / "iter_0000005.old")
    (saved / "iter_0000004.old").mkdir()
    remove_leftovers(saved)
    assert sorted(p.name for p in saved.glob("iter_*")) == ["iter_0000003", "iter_0000005"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, SpaceError), (errno.EDQUOT, SpaceError), (errno.EACCES, DataError)],
)
def test_no_room_for_the_tracker_is_no_room_for_the_checkpoint(saved, monkeypatch, number, kind):
    """Which a run takes for a warning."""

    def refuse(files):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(dcp_module.AtomicFiles, "_rename", refuse)
    with pytest.raises(DataError, match=f"cannot write .*{TRACKER}") as raised:
        save_checkpoint(saved, 7, TENSORS, {})
    assert type(raised.value) is kind
    assert find_checkpoint(saved) == checkpoint_path(saved, 5)
    load(require_checkpoint(saved, 7))


@pytest.mark.parametrize("stage", ["dcp.save", "_finish", "_publish"])
def test_a_save_that_dies_leaves_the_one_before_it(saved, monkeypatch, stage):
    def die(*arguments, **options):
        raise KeyboardInterrupt

    target, _, name = stage.rpartition(".")
    monkeypatch.setattr(dcp_module.dcp if target else dcp_module, name, die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, 7, TENSORS, {})
    assert find_checkpoint(saved) == checkpoint_path(saved, 5)
    monkeypatch.undo()
    save_checkpoint(saved, 7, TENSORS, {})
    assert find_checkpoint(saved) == checkpoint_path(saved, 7)
    assert not list(saved.glob("*.tmp"))


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the checkpoint"):
        save_checkpoint(tmp_path / "file", 1, TENSORS, {})


def test_every_flipped_byte_is_noticed(saved):
    path = require_checkpoint(saved)
    for file in sorted(path.iterdir()):
        if file.name == "manifest.json":
            continue
        whole = file.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 8)):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
            with pytest.raises(DataError, match=f"damaged: {file.name}"):
                load(path)
        file.write_bytes(whole[:-1])
        with pytest.raises(DataError, match=f"damaged: {file.name}"):
            load(path)
        file.unlink()
        with pytest.raises(DataError, match=f"{file.name} is missing"):
            load(path)
        file.write_bytes(whole)
    load(path)


def test_metadata_that_would_run_code_is_refused(saved, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    path = require_checkpoint(saved)
    (path / ".metadata").write_bytes(pickle.dumps(Hostile()))
    manifest = digests(path)
    (path / "manifest.json").write_text(json.dumps(manifest))  # the hostile hand knows the format
    with pytest.raises(UnsafeError, match=r"posix\.system|os\.system"):
        load(path)
    assert not (tmp_path / "ran").exists()


def test_tensors_that_do_not_fit_are_refused(saved):
    path = require_checkpoint(saved)
    with pytest.raises(DataError, match="does not fit"):
        load_tensors(path, {"model.a": torch.zeros(20, 31)})
    with pytest.raises(DataError, match="does not fit"):
        load_tensors(path, {"model.c": torch.zeros(2)})


def test_another_version_of_the_format_is_refused(saved):
    path = require_checkpoint(saved)
    state = read_state(path) | {"format_version": FORMAT_VERSION + 1}
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=f"format_version {FORMAT_VERSION + 1}"):
        read_state(path)
    shutil.rmtree(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_state(path)
