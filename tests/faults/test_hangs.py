"""A rank that does not come is named, with the place where it is, within --distributed-timeout-minutes."""

import json
import sys
from pathlib import Path

import pytest
from commands import train_flags
from faults.jobs import run_job

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a witness needs Linux's /proc")
TIMEOUT = 4.0
"""Seconds that a collective may wait."""


def ended(how: str, prepared: Path, save: Path, *more: object, ranks: int = 2):
    """A job of which a rank goes astray: how it ended, and its exit.json if it left one."""
    [_, *flags] = train_flags(prepared, save, "--distributed-timeout-minutes", TIMEOUT / 60, *more)
    job = run_job((Path(__file__).with_name("hanging.py"), how, *flags), ranks)
    assert job.orphans == ()
    report = save / "exit.json"
    return job, json.loads(report.read_text()) if report.exists() else None


@pytest.mark.parametrize(
    ("fault", "place"),
    [("stop", "stopped by a signal"), pytest.param("sleep=600", "hook (", marks=pytest.mark.slow)],
    ids=["stopped", "asleep"],
)
def test_a_rank_that_stands_still_is_named_with_the_step_and_its_stack(
    prepared, tmp_path, fault, place
):
    more = ("--fault", f"step.before_update:{fault}@3,rank=1")
    job, report = ended("none", prepared, tmp_path / "run", *more)
    assert job.statuses[0] == 75
    assert job.said.count("error: rank 1 (") == 1
    assert "did not come: rank 0 waited for it in step 3\n" in job.said
    assert (report["class"], report["status"], report["rank"]) == ("rank_lost", 75, 1)
    assert place in report["why"]


def test_ranks_that_exchange_different_sizes_end_with_the_place(prepared, tmp_path):
    """gloo aborts the process that received what it did not expect."""
    job, report = ended("other size", prepared, tmp_path / "run")
    assert "Is there a distributed collective mismatch in your code?" in job.said
    assert (report["class"], report["status"], report["signal"]) == ("rank_lost", 75, "SIGABRT")
    assert report["cause"].endswith("died: signal 6 (SIGABRT) in step 3")
    assert "; it was in all_reduce (" in report["why"]
    assert " < agreed (train/stopping.py:" in report["why"]


def test_ranks_in_different_collectives_are_both_shown(prepared, tmp_path):
    job, report = ended("other kind", prepared, tmp_path / "run")
    assert job.statuses[0] == 75
    assert "waited in vain for another rank in step 3" in report["cause"]
    first, second = report["why"].split("; rank 1: ")
    assert first.startswith("rank 0: all_reduce (") and " < agreed (train/stopping.py:" in first
    assert second.startswith("barrier (") and " < step (train/trainer.py:" in second


def test_of_three_ranks_the_one_in_another_collective_is_named(prepared, tmp_path):
    more = ("--global-batch-size", 6, "--micro-batch-size", 2)
    job, report = ended("other kind", prepared, tmp_path / "run", *more, ranks=3)
    # -9: who waits on after the first has spoken is ended
    assert set(job.statuses) <= {75, -9}, job.said
    assert job.said.count("waited elsewhere than the other ranks in step 3: rank ") == 1
    assert (report["class"], report["status"], report["rank"]) == ("rank_lost", 75, 1)
    first, second = report["why"].split("; most ranks: ")
    assert first.startswith("rank 1: barrier (") and " < step (train/trainer.py:" in first
    assert second.startswith("all_reduce (") and " < agreed (train/stopping.py:" in second


def test_a_rank_without_memory_is_named_with_what_it_holds_and_flags_that_need_less(
    prepared, tmp_path
):
    more = ("--global-batch-size", 32, "--micro-batch-size", 8)
    job, report = ended("memory", prepared, tmp_path / "run", *more)
    assert job.statuses[1] == 2
    assert (
        "error: rank 1 (" in job.said and ") ran out of memory: can't allocate memory" in job.said
    )
    assert "GiB by prediction (weights 0.00, " in job.said
    assert "\n  try: --micro-batch-size 4, or --micro-batch-size 2, or --" in job.said
    assert (report["class"], report["status"], report["rank"]) == ("memory", 2, 1)
    assert job.said.count("Traceback") == 0


def test_ranks_without_room_for_their_output_end_with_that_and_not_with_each_other(
    prepared, tmp_path
):
    save = tmp_path / "run"
    save.mkdir()
    job, report = ended("no room", prepared, save)
    assert job.statuses == (2, 2), job.said
    assert "lost the connection" not in job.said
    assert (report["class"], report["status"], report["rank"]) == ("space", 2, 0)
    assert report["cause"] == "cannot write the output: No space left on device"


def test_ranks_with_different_settings_are_refused_before_anything_is_computed(prepared, tmp_path):
    """A learning rate is no rank's business until the first update: they would train apart silently."""
    job, _ = ended("other lr", prepared, tmp_path / "run")
    assert job.statuses == (2, 2), job.said
    assert job.said.startswith("error: lr is 0.01 on rank 0, 0.11 on rank 1 (")
    assert job.said.count("\n") == 3
    assert not (tmp_path / "run").exists()


def test_a_rank_that_never_comes_is_named(prepared, tmp_path):
    save = tmp_path / "run"
    save.mkdir()
    job, report = ended("absent", prepared, save, ranks=1)
    assert job.statuses == (75,)
    assert job.said.startswith(f"error: waited {TIMEOUT:.0f} s for rank 1 of 2\n")
    assert (report["class"], report["status"]) == ("rank_lost", 75)
    assert report["cause"] == f"waited {TIMEOUT:.0f} s for rank 1 of 2"
