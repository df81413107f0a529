"""One job at a time writes to a directory, and one that comes no further is refused."""

import contextlib
import json
import os
import subprocess
import sys
import time

import pytest

from megatron_yuyuan.errors import BusyError, ConfigError, DataError, LostError, NoProgressError
from megatron_yuyuan.watch import lease
from megatron_yuyuan.watch.lease import LEASE_FILE, MEETING_FILE, meeting_counted, take

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc who lives")


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    for name, seconds in (("BEAT", 0.02), ("WATCH", 1.0), ("SETTLED", 0.0)):
        monkeypatch.setattr(lease, name, seconds)


def lease_of(directory, **changes) -> dict:
    """Leave a lease of a process that has ended, with some of its words changed."""
    document = lease._document("4711", 0, 0, None) | {"ended": True} | changes
    (directory / LEASE_FILE).write_text(json.dumps(document))
    return document


def run(directory, saved=0, reached=0, ends_by=None) -> dict:
    """One start and its end; the lease that it had."""
    held = {}
    try:
        with take(directory, "4711", saved, reached):
            held = json.loads((directory / LEASE_FILE).read_text())
            if ends_by:
                raise ends_by
    except type(ends_by or ConfigError("", "", "")):
        pass
    return held


LOST = LostError("a", "b", "c")


@linux
def test_a_second_job_is_refused_and_told_of_the_first(tmp_path):
    with take(tmp_path / "run", "4711", 0, 0):
        with pytest.raises(BusyError) as error:
            take(tmp_path / "run", "4712", 0, 0)
        words = f"{tmp_path / 'run'} is in use by job 4711 on .* \\(pid {os.getpid()}\\) since 20"
        error.match(words)
        assert (error.value.status, error.value.kind) == (2, "busy")
    with take(tmp_path / "run", "4712", 0, 0):
        pass


@linux
def test_the_lease_of_a_killed_process_of_this_machine_is_taken_over(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from megatron_yuyuan.watch.lease import take\n"
        "with take(Path(sys.argv[1]), 'first', 0, 0): print('held', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match="job first"):
        take(tmp_path, "second", 0, 0)
    first.kill()
    first.communicate()
    assert run(tmp_path)["starts"] == 2


def test_a_holder_elsewhere_lives_as_long_as_it_touches_its_lease(tmp_path):
    before, said = lease_of(tmp_path, ended=False, machine="another", host="node7"), []
    holder = lease.Lease(tmp_path, before, [])
    with holder, pytest.raises(BusyError, match="job 4711 on node7"):
        take(tmp_path, "4712", 0, 0, said.append)
    assert said == [
        f"{tmp_path} is in use by {lease.holder(before)}: looking 1 s for a sign of life"
    ]


def test_a_holder_elsewhere_that_is_silent_is_dead(tmp_path):
    before = lease_of(tmp_path, ended=False, machine="another")
    begun = time.monotonic()
    assert run(tmp_path)["id"] != before["id"]
    assert time.monotonic() - begun >= 1.0


def test_of_two_that_take_over_the_later_has_it(tmp_path, monkeypatch):
    lease_of(tmp_path)
    rival = lease._document("rival", 0, 0, None)
    monkeypatch.setattr(
        lease.time, "sleep", lambda _: (tmp_path / LEASE_FILE).write_text(json.dumps(rival))
    )
    with pytest.raises(BusyError, match="job rival"):
        take(tmp_path, "4712", 0, 0)


def test_of_two_that_begin_together_the_faster_keeps_it(tmp_path, monkeypatch):
    rival = lease._document("rival", 0, 0, None)

    def too_late(path, document) -> bool:
        path.write_text(json.dumps(rival))
        return False

    monkeypatch.setattr(lease, "publish_once", too_late)
    with pytest.raises(BusyError, match="job rival"):
        take(tmp_path, "4712", 0, 0)
    assert json.loads((tmp_path / LEASE_FILE).read_text()) == rival


def test_a_lease_is_taken_where_the_name_is_no_leases_or_there_are_no_links(tmp_path, monkeypatch):
    (tmp_path / LEASE_FILE).write_text("{}")
    assert run(tmp_path)["starts"] == 1
    monkeypatch.setattr(lease, "publish_once", lambda *_: False)
    assert run(tmp_path)["starts"] == 1


@linux
def test_a_place_is_free_if_its_holder_on_this_machine_is_dead(tmp_path):
    assert lease.is_free(tmp_path)
    lease_of(tmp_path, ended=False)  # of this very process
    assert not lease.is_free(tmp_path)
    lease_of(tmp_path, ended=False, began="at another time")
    assert lease.is_free(tmp_path)
    lease_of(tmp_path, ended=False, began="at another time", machine="another")
    assert not lease.is_free(tmp_path)


def test_who_has_lost_the_lease_ends_at_once(tmp_path, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(lease.os, "_exit", ended.append)
    with take(tmp_path, "4711", 0, 0):
        lease_of(tmp_path, job="rival", ended=False)
        deadline = time.monotonic() + 60
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
    assert ended[0] == 2
    assert json.loads((tmp_path / LEASE_FILE).read_text())["job"] == "rival"
    assert f"error: {tmp_path} is in use by job rival" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [LOST, ZeroDivisionError()], ids=["lost", "bug"])
def test_starts_that_come_no_further_are_counted_and_then_refused(tmp_path, ending):
    assert run(tmp_path, 0, 0, ending)["starts"] == 1
    assert run(tmp_path, 0, 7, ending)["starts"] == 1  # the run before had come to step 7
    assert run(tmp_path, 5, 7, ending)["starts"] == 1  # or had saved step 5
    assert [run(tmp_path, 5, reached, ending)["starts"] for reached in (7, 6)] == [2, 3]
    with pytest.raises(
        NoProgressError, match="3 starts in a row came no further than step 7"
    ) as error:
        take(tmp_path, "4711", 5, 7)
    assert (error.value.status, error.value.kind) == (2, "no_progress")
    assert run(tmp_path, 5, 7, ending)["starts"] == 1  # a person has looked at it


@pytest.mark.parametrize(
    "ending",
    [None, ConfigError("a", "b", "c"), KeyboardInterrupt()],
    ids=["good", "refused", "interrupted"],
)
def test_an_end_that_a_person_sees_begins_the_count_anew(tmp_path, ending):
    assert run(tmp_path, ends_by=LOST)["starts"] == 1
    assert run(tmp_path, ends_by=ending)["starts"] == 2
    assert not (tmp_path / LEASE_FILE).exists()
    assert run(tmp_path, ends_by=LOST)["starts"] == 1


def test_what_a_refused_run_has_made_goes_with_it(tmp_path):
    run(tmp_path / "runs" / "a", ends_by=ConfigError("a", "b", "c"))
    assert not (tmp_path / "runs").exists()
    with take(tmp_path / "runs" / "b", "4711", 0, 0):
        (tmp_path / "runs" / "b" / "config.toml").touch()
    assert os.listdir(tmp_path / "runs" / "b") == ["config.toml"]


def test_a_file_that_is_no_lease_holds_nobody(tmp_path):
    half = '{"id": "a", "machine": "b", "starts": 1, "ended": false}'
    for text in ("", "[1]", '{"id": 1}', half):
        (tmp_path / LEASE_FILE).write_text(text)
        assert run(tmp_path)["starts"] == 1


def test_a_place_that_cannot_be_written_to_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*lease\.json: Not a directory"):
        take(tmp_path / "file" / "run", "4711", 0, 0)


def meeting(directory, ends_by=None) -> None:
    """A start whose ranks meet, or that ends before by an error."""
    with contextlib.suppress(type(ends_by or LOST)), meeting_counted(directory):
        if ends_by:
            raise ends_by


@pytest.mark.parametrize("ending", [LOST, ZeroDivisionError()], ids=["lost", "bug"])
def test_starts_whose_ranks_never_meet_are_counted_and_then_refused(tmp_path, ending):
    for _ in range(3):
        meeting(tmp_path, ending)
    words = "^3 starts in a row ended before their ranks had met\n"
    with pytest.raises(NoProgressError, match=words), meeting_counted(tmp_path):
        pytest.fail("it was not refused")
    assert os.listdir(tmp_path) == []
    meeting(tmp_path, ending)  # a person has looked at it
    assert os.listdir(tmp_path) == [MEETING_FILE]


def test_starts_that_another_rank_refuses_are_not_counted(tmp_path):
    """Rank 0 is stopped while it waits, and knows of its loss only."""
    (tmp_path / "exit.json").write_text('{"class": "usage", "status": 2}')
    for _ in range(4):
        meeting(tmp_path, LOST)
    assert os.listdir(tmp_path) == ["exit.json"]


def test_a_start_that_is_killed_before_its_ranks_meet_is_counted(tmp_path):
    for _ in range(3):
        meeting_counted(tmp_path).__enter__()
    with pytest.raises(NoProgressError), meeting_counted(tmp_path):
        pytest.fail("it was not refused")


@pytest.mark.parametrize(
    "ending",
    [None, ConfigError("a", "b", "c"), KeyboardInterrupt()],
    ids=["met", "refused", "interrupted"],
)
def test_ranks_that_meet_or_a_person_begin_the_count_anew(tmp_path, ending):
    for _ in range(2):
        meeting(tmp_path, LOST)
    for _ in range(4):
        meeting(tmp_path, ending)
        assert os.listdir(tmp_path) == []


@linux
def test_starts_are_not_counted_where_another_job_writes_or_nothing_is(tmp_path):
    lease_of(tmp_path, ended=False)
    for directory in (tmp_path, tmp_path / "run"):
        for _ in range(4):
            meeting(directory, LOST)
    assert os.listdir(tmp_path) == [LEASE_FILE]


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"starts": null}'])
def test_a_file_that_counts_nothing_is_replaced(tmp_path, text):
    (tmp_path / MEETING_FILE).write_text(text)
    meeting(tmp_path, LOST)
    assert json.loads((tmp_path / MEETING_FILE).read_text()) == {"starts": 1}
