"""Checkpoints in a run: in the background the same bytes, and no failure hangs a rank or is lost."""

import json
import os
import resource
import shutil
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from commands import train_flags
from pretraining import pretrained
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.checkpoint import saver as saver_module
from megatron_yuyuan.checkpoint import writer
from megatron_yuyuan.checkpoint.dcp import read_state, save_checkpoint
from megatron_yuyuan.checkpoint.saver import NoSaver, build_saver
from megatron_yuyuan.errors import DataError, SpaceError
from megatron_yuyuan.log import Log, read_metrics
from megatron_yuyuan.watch.saved import find_checkpoint

TOKENIZER = SimpleNamespace(fingerprint="0", vocab_size=120)
CONFIG = Layout(data=2).of(TINY.replace(num_layers=2))
BOTH = pytest.mark.parametrize("background", [False, True], ids=["at_once", "background"])


def after_two_steps(directory, background: bool = True, started_from=None, **rules):
    """A trainer that has taken two steps, and its saver."""
    config = CONFIG.replace(save=str(directory), async_save=background, **rules)
    trainer = build_trainer(config)
    log = Log(directory, trainer.mesh.is_main)
    saver = build_saver(config, trainer.state, TOKENIZER, started_from, log)
    trainer.step(RandomText()), trainer.step(RandomText())
    return trainer, saver


def digests(directory, iteration: int) -> dict[str, str]:
    """sha256 of the files of tensors."""
    path = directory / f"iter_{iteration:07d}" / "manifest.json"
    entries = json.loads(path.read_text()).items()
    return {name: entry["sha256"] for name, entry in entries if name.endswith(".distcp")}


def train_while_it_is_written(directory):
    """Save after step 2, at once and in the background; the latter is held back until step 4."""
    trainer, saver = after_two_steps(directory / "at_once", False)
    saver.save(validation_loss=3.5)
    _, background = after_two_steps(directory / "background")
    background._state = trainer.state  # the very same tensors
    trained, write = threading.Event(), saver_module.save_checkpoint

    def late(*arguments):
        assert trained.wait(60)
        return write(*arguments)

    saver_module.save_checkpoint = late
    with background:
        background.save(validation_loss=3.5)
        for _ in range(2):
            trainer.step(RandomText())
            background.poll()
        assert find_checkpoint(directory / "background") is None
        trained.set()
        background.save()
    return trainer.state.iteration


def test_in_the_background_the_moment_of_the_save_is_written_bit_for_bit(ranks, tmp_path):
    assert ranks.run(2, train_while_it_is_written, tmp_path) == 4
    expected = digests(tmp_path / "at_once", 2)
    assert len(expected) == 2
    assert digests(tmp_path / "background", 2) == expected
    assert not set(digests(tmp_path / "background", 4).values()) & set(expected.values())
    states = [read_state(tmp_path / kind / "iter_0000002") for kind in ("at_once", "background")]
    for state in states:
        assert state.pop("config")["checkpoint"]["save"]
    assert states[0] == states[1]
    assert states[0]["validation_loss"] == 3.5
    saves = read_metrics(tmp_path / "background" / "metrics.jsonl", "save")
    assert [save["iteration"] for save in saves] == [2, 4]
    assert all(0 <= save["blocked_seconds"] < save["seconds"] for save in saves)


def first_disk_full_then_not(directory, background: bool, rooms: list[bool]):
    """Save with room or without; what the saver raised at the end, and what it said."""
    usage = shutil.disk_usage(directory)._replace(free=100)
    trainer, saver = after_two_steps(directory, background)
    found, said = shutil.disk_usage, []
    saver._log.line = said.append
    try:
        with saver:
            for room in rooms:
                trainer.step(RandomText())
                shutil.disk_usage = found if room else lambda path: usage
                saver.save()
                saver.poll()
                if background:
                    saver._wait()  # before the disk is another one
    except SpaceError as error:
        return str(error), said
    return None, said


@BOTH
def test_a_save_without_room_is_a_warning_and_the_next_tries_again(ranks, tmp_path, background):
    ended, said = ranks.run(2, first_disk_full_then_not, tmp_path, background, [True, False, True])
    assert ended is None
    assert [line.split()[0] for line in said] == ["saved", "warning:", "saved"]
    assert said[1].startswith("warning: iteration 4 is not saved: no room for a checkpoint")
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["save", "save_failed", "save"]
    assert events[1]["iteration"] == 4
    assert "no room for a checkpoint" in events[1]["cause"]
    assert find_checkpoint(tmp_path).name == "iter_0000005"
    assert not (tmp_path / "iter_0000004").exists()
    assert not list(tmp_path.glob("*.tmp"))


@BOTH
def test_the_last_save_without_room_is_an_error(ranks, tmp_path, background):
    ended, said = ranks.run(2, first_disk_full_then_not, tmp_path, background, [True, False])
    assert "no room for a checkpoint" in ended
    assert "100 bytes are free" in ended
    assert said[-1].startswith("warning: iteration 4 is not saved: no room for a checkpoint")
    assert said[-1].endswith("100 bytes are free")  # and promises no next save
    assert find_checkpoint(tmp_path).name == "iter_0000003"


def largest_file_reached(directory, background: bool):
    """On rank 1 no file may be larger than 20 kB. Every rank's error."""
    trainer, saver = after_two_steps(directory, background)
    if not trainer.mesh.is_main:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    errors = []
    try:
        with saver:
            saver.save()
    except SpaceError as error:
        errors.append(str(error))
    return saver_module.Ranks().all_gather_object(errors)


@BOTH
def test_a_disk_that_fills_up_on_one_rank_hangs_none(ranks, tmp_path, background):
    found = ranks.run(2, largest_file_reached, tmp_path, background)
    assert len(found) == 2
    assert found[0] == found[1]
    assert "File too large" in found[0][0]
    assert not list(tmp_path.glob("iter_*"))


def place_gone(directory):
    """The place of the checkpoints becomes a file while one is written: errors by rank, and when."""
    trainer, saver = after_two_steps(directory / "run")
    shutil.rmtree(directory / "run", ignore_errors=True)
    saver_module.Ranks().all_gather_object(0)
    if trainer.mesh.is_main:
        (directory / "run").write_text("")
    saver_module.Ranks().all_gather_object(0)
    errors = []
    saver.save()
    for _ in range(1000):
        try:
            saver.poll()
        except DataError as error:
            errors.append((trainer.state.iteration, type(error).__name__, str(error)))
            break
        trainer.step(RandomText())
    return saver_module.Ranks().all_gather_object(errors)


def test_a_failure_in_the_background_is_seen_by_every_rank_after_the_same_step(ranks, tmp_path):
    found = ranks.run(2, place_gone, tmp_path)
    assert len(found[0]) == 1
    assert found[0] == found[1]
    assert found[0][0][1] == "DataError"
    assert "cannot write the checkpoint" in found[0][0][2]


def killed_while_it_is_written(directory, background: bool):
    trainer, saver = after_two_steps(directory, background)
    saver.save()
    saver.finish()
    with saver:
        trainer.step(RandomText())

        def die(self, data):
            self._raw.write(data)
            self._raw.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        writer._DigestingStream.write = die
        saver.save()


@BOTH
def test_a_kill_while_it_is_written_leaves_the_one_before(ranks, tmp_path, background):
    with pytest.raises(RuntimeError, match="died without an answer"):
        ranks.run(2, killed_while_it_is_written, tmp_path, background)
    assert find_checkpoint(tmp_path).name == "iter_0000002"
    assert list(tmp_path.glob("iter_0000003.tmp/*.distcp"))
    assert not (tmp_path / "iter_0000003").exists()


def an_error_elsewhere(directory):
    trainer, saver = after_two_steps(directory)
    with pytest.raises(KeyError), saver:
        saver.save()
        raise KeyError
    return trainer.state.iteration


def test_an_error_elsewhere_waits_for_what_is_under_way(ranks, tmp_path):
    assert ranks.run(2, an_error_elsewhere, tmp_path) == 2
    assert find_checkpoint(tmp_path).name == "iter_0000002"


def two_failures(directory):
    """The place is gone while another error ends the run; and an old checkpoint cannot be removed."""

    def refuse(*_):
        raise OSError("held by another")

    def fail(*_):
        raise DataError("cannot write", "its place is gone", "another")

    said = []
    _, saver = after_two_steps(directory, False)
    saver._log.line = said.append
    saver_module.remove_superseded = refuse
    saver.save()
    _, saver = after_two_steps(directory)
    saver._log.line = said.append
    saver_module.save_checkpoint = fail
    with pytest.raises(KeyError), saver:
        saver.save()
        raise KeyError
    return said


def test_what_does_not_end_the_run_is_a_warning(ranks, tmp_path):
    _, not_removed, not_saved = ranks.run(2, two_failures, tmp_path)
    assert not_removed == "warning: older checkpoints could not be removed: held by another"
    assert not_saved.startswith("warning: cannot write\n  why: its place is gone")


def required_place(directory, free: int):
    """What a start with so many bytes free is refused for, on rank 1."""
    _, saver = after_two_steps(directory)
    usage = shutil.disk_usage("/")._replace(free=free)
    shutil.disk_usage = lambda path: usage
    refused = ""
    try:
        saver.require_place()
    except DataError as error:
        refused = str(error)
    return saver_module.Ranks().all_gather_object(refused)[1]


def test_a_place_for_not_even_one_checkpoint_is_refused_at_the_start(ranks, tmp_path):
    """Weights and two moments in float32, whatever the layout."""
    needed = 3 * 4 * CONFIG.model.num_parameters
    assert ranks.run(2, required_place, tmp_path / "run", needed) == ""
    refused = ranks.run(2, required_place, tmp_path / "run", needed - 1)
    assert "no room for a checkpoint" in refused
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_refused_at_the_start(ranks, tmp_path):
    (tmp_path / "file").write_text("")
    refused = ranks.run(2, required_place, tmp_path / "file" / "run", 10**9)
    assert refused.startswith("cannot write in")
    assert "Not a directory" in refused


def where_old_ones_take_the_room(directory, background: bool, starting: bool):
    """Look for a place, or save iteration 700, under --keep-last 1, where nothing else fits while
    iteration 200 or what a kill left is there: what lay there as room was looked for, what was said."""
    first = directory / "iter_0000100"
    trainer, saver = after_two_steps(directory, background, first, keep_last=1)
    trainer.state.iteration, usage = 700, shutil.disk_usage(directory)
    seen, said = set(), []

    def disk_usage(path):
        seen.add(tuple(sorted(path.name for path in directory.glob("iter_*"))))
        taken = [*directory.glob("iter_0000200"), *directory.glob("*.tmp")]
        return usage._replace(free=0 if taken else 10**9)

    shutil.disk_usage, saver._log.line = disk_usage, said.append
    with saver:
        saver.require_place() if starting else saver.save()
    return seen, said


@BOTH
@pytest.mark.parametrize("starting", [True, False], ids=["start", "save"])
def test_what_may_go_goes_before_room_is_looked_for(ranks, tmp_path, background, starting):
    """But never the newest on the disk, nor the one that the run started from."""
    for iteration in (100, 200, 300):
        save_checkpoint(tmp_path, iteration, {"a": torch.ones(2)}, {})
    (tmp_path / "iter_0000400.tmp").mkdir()
    seen, said = ranks.run(2, where_old_ones_take_the_room, tmp_path, background, starting)
    assert seen == {("iter_0000100", "iter_0000300")}
    left = sorted(path.name for path in tmp_path.glob("iter_*"))
    assert left == ["iter_0000100", "iter_0000300" if starting else "iter_0000700"]
    assert said[-1] == "removed iter_0000200" + ("" if starting else ", iter_0000300")


def test_a_run_keeps_what_its_rules_say(ranks, prepared, tmp_path):
    """In the background; each checkpoint has the validation loss of its iteration."""
    flags = ("--async-save", "--keep-best", 1, "--save-retain-interval", 6, "--train-iters", 10)
    often = ("--save-interval", 2, "--eval-interval", 2)
    ranks.run(2, pretrained, train_flags(prepared, tmp_path, *flags, *often))
    metrics = tmp_path / "metrics.jsonl"
    evaluations = read_metrics(metrics, "evaluation")
    losses = {figures["iteration"]: figures["validation_loss"] for figures in evaluations}
    left = {int(path.name[5:]): read_state(path) for path in tmp_path.glob("iter_*")}
    assert set(left) == {6, 10, min(losses, key=losses.get)}
    assert {i: state["validation_loss"] for i, state in left.items()} == {
        i: losses[i] for i in left
    }
    assert [save["iteration"] for save in read_metrics(metrics, "save")] == [2, 4, 6, 8, 10]


def test_without_a_place_nothing_is_saved():
    saver = build_saver(TINY, None, TOKENIZER, None, None)
    assert isinstance(saver, NoSaver)
    with saver:
        saver.require_place()
        saver.save(1.0)
        saver.poll()
