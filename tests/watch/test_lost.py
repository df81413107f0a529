"""The ranks that are left name the one that is missing."""

import itertools
import json
import time

import pytest
import torch
import torch.distributed as dist

from megatron_yuyuan.errors import ConfigError, DataError, LostError
from megatron_yuyuan.watch import lease, lost
from megatron_yuyuan.watch.heartbeat import (
    Rank,
    Watched,
    absent,
    astray,
    heartbeat_path,
    read_heartbeats,
)
from megatron_yuyuan.watch.lost import losses_named

CLOSED = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:5"
TIMED_OUT = "[gloo/transport/tcp/unbound_buffer.cc:119] Timed out waiting 5000ms for recv operation"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lost, "REPORT", 0.2)
    monkeypatch.setattr(lost, "BEAT", 0.1)


def newcomer(save) -> Watched:
    return Watched(Rank(0, 3, "4711", "node1"), str(save))


def survivor(save="") -> Watched:
    own = newcomer(save)
    own.heartbeat.beat("step", 50)
    return own


def loss(own: Watched, text: str) -> LostError:
    """What a rank says whose collective fails with these words."""
    with pytest.raises(LostError) as error, losses_named(own):
        raise RuntimeError(text)
    return error.value


def heartbeat(save, rank: int, host: str = "node1", **more) -> None:
    path = heartbeat_path(save, rank)
    path.parent.mkdir(exist_ok=True)
    document = {"rank": rank, "host": host, "pid": 70 + rank, "beats": 9, "idle_seconds": 12.0}
    path.write_text(json.dumps(document | {"place": "in step 51"} | more))


def test_what_a_witness_reports_is_what_the_others_end_with(tmp_path):
    report = {"class": "rank_lost", "cause": "rank 1 (node2, pid 7) died", "why": "w"}
    report["resume_from"] = "R/iter_0000050"
    (tmp_path / "exit.json").write_text(json.dumps(report))
    error = loss(survivor(tmp_path), CLOSED)
    assert (error.what, error.why, error.said) == (report["cause"], "w", True)
    assert error.remedy == "the same command again, which goes on from R/iter_0000050"
    assert json.loads((tmp_path / "exit.json").read_text()) == report


def test_an_error_of_one_rank_is_what_the_others_end_with_and_say_for_it(tmp_path):
    """Under bare srun: its own rank would say it only as the first. Its status is that of the job."""
    report = {"class": "data", "status": 2, "cause": "cannot read x", "why": "w"}
    (tmp_path / "exit.json").write_text(json.dumps(report))
    error = loss(survivor(tmp_path), CLOSED)
    assert (error.what, error.why, error.status, error.said) == ("cannot read x", "w", 2, False)
    assert error.remedy == "mend that first"


@pytest.mark.parametrize("phase", ["load", "step"])
def test_an_error_before_the_first_step_is_claimed_by_its_rank(tmp_path, phase):
    """After it exit_report.py does that."""
    own = newcomer(tmp_path)
    own.heartbeat.beat(phase, 0)
    with pytest.raises(DataError), losses_named(own):
        raise DataError("no room", "b", "c")
    report = json.loads((tmp_path / "exit.json").read_text()) if phase == "load" else {}
    assert report.get("class") == ("data" if phase == "load" else None)
    assert (tmp_path / "exit.json").exists() == (phase == "load")


def test_a_store_that_dies_is_a_rank_that_was_lost():
    """torch's own words where the process that kept the store has died."""
    own = survivor()
    with pytest.raises(LostError, match="lost the connection"), losses_named(own):
        raise dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed.")


def test_a_rank_that_hangs_is_named_with_its_stack(tmp_path):
    heartbeat(tmp_path, 0, waits=True, stack="all_reduce (distributed_c10d.py:9)")
    heartbeat(tmp_path, 1, "node2", waits=False, stack="sleep (x.py:3) < read_batch (loader.py:50)")
    error = loss(survivor(tmp_path), TIMED_OUT)
    assert error.what == "rank 1 (node2, pid 71) did not come: rank 0 waited for it in step 51"
    assert error.why == "for 12 s it has been here: sleep (x.py:3) < read_batch (loader.py:50)"
    report = json.loads((tmp_path / "exit.json").read_text())
    assert (report["rank"], report["host"], report["status"]) == (1, "node2", 75)
    assert (report["class"], report["step"], report["why"]) == ("rank_lost", 50, error.why)


@pytest.mark.parametrize(
    ("places", "found"),
    [
        (("gradients (loop.py:80)", "read (loader.py:3)", "gradients (loop.py:80) < step"), 1),
        (
            ("gradients (loop.py:80)", "gradients (loop.py:80) < a", "gradients (loop.py:80) < b"),
            None,
        ),
        (("gradients (loop.py:80)", None, None), None),
    ],
    ids=["elsewhere", "nowhere else", "moving"],
)
def test_on_cuda_the_rank_elsewhere_is_the_one_that_is_awaited(tmp_path, places, found):
    """Where ranks wait in plain code, none is inside a collective."""
    for rank, place in enumerate(places):
        heartbeat(tmp_path, rank, **({"waits": False, "stack": place} if place else {}))
    late = absent(read_heartbeats(str(tmp_path), 3), 0)
    assert (late and late["rank"]) == found


SUM, BARRIER = "all_reduce (d.py:9) < agreed (s.py:5)", "barrier (d.py:3) < step (loop.py:7)"


def test_a_rank_in_another_collective_than_most_is_named(tmp_path):
    for rank, place in enumerate((SUM, SUM, BARRIER)):
        heartbeat(tmp_path, rank, waits=True, stack=place)
    error = loss(survivor(tmp_path), TIMED_OUT)
    assert error.what == (
        "rank 2 (node1, pid 72) waited elsewhere than the other ranks in step 51: rank 0 waited in vain"
    )
    assert error.why == f"rank 2: {BARRIER}; most ranks: {SUM}"
    report = json.loads((tmp_path / "exit.json").read_text())
    assert (report["rank"], report["pid"], report["status"]) == (2, 72, 75)


@pytest.mark.parametrize("places", [(SUM, BARRIER), (SUM, SUM, BARRIER, "recv"), (SUM, SUM), ()])
def test_without_a_majority_nobody_went_astray(tmp_path, places):
    for rank, place in enumerate(places):
        heartbeat(tmp_path, rank, waits=True, stack=place)
    heartbeat(tmp_path, len(places))  # it moves
    assert astray(read_heartbeats(str(tmp_path), 8)) == []


def test_of_several_that_went_astray_none_is_the_culprit(tmp_path):
    """In a long pipeline most stages wait for the one before."""
    for rank, place in enumerate((BARRIER, "send", SUM, SUM, SUM)):
        heartbeat(tmp_path, rank, waits=True, stack=place)
    own = Watched(Rank(0, 5, "4711", "node1"), str(tmp_path))
    own.heartbeat.beat("step", 50)
    error = loss(own, TIMED_OUT)
    assert "rank 0 (node1, pid 70), rank 1 (node1, pid 71) waited elsewhere" in error.what
    assert json.loads((tmp_path / "exit.json").read_text())["rank"] is None


def test_a_host_whose_heartbeats_stop_is_gone(tmp_path):
    for rank, host in enumerate(("node1", "node2", "node2")):
        heartbeat(tmp_path, rank, host)
    error = loss(survivor(tmp_path), CLOSED)
    assert error.what == "host node2 is gone with rank 1, 2, last heard of in step 51"


def test_a_host_whose_heartbeats_go_on_is_not(tmp_path, monkeypatch):
    beats = itertools.count(10)
    monkeypatch.setattr(
        lost.time, "sleep", lambda _: heartbeat(tmp_path, 1, "node2", beats=next(beats))
    )
    heartbeat(tmp_path, 1, "node2")
    error = loss(survivor(tmp_path), CLOSED)
    assert error.what == "rank 0 (node1) lost the connection to another rank in step 51"
    assert error.why == "rank 1: in step 51"


def test_without_a_directory_nobody_can_be_named():
    begun = time.monotonic()
    for text, what in ((CLOSED, "lost the connection to"), (TIMED_OUT, "waited in vain for")):
        error = loss(survivor(), text)
        assert error.what == f"rank 0 (node1) {what} another rank in step 51"
        assert "without --save no heartbeats are kept that could name it, nor before" in error.why
    assert time.monotonic() - begun < 60


def test_a_rank_that_never_came_is_reported_too(tmp_path):
    with pytest.raises(LostError, match=r"^a\n"), losses_named(survivor(tmp_path)):
        raise LostError("a", "b", "c")
    assert json.loads((tmp_path / "exit.json").read_text())["cause"] == "a"


def test_a_rank_that_never_came_is_not_reported_to_another_job(tmp_path):
    (tmp_path / lease.LEASE_FILE).write_text(json.dumps(lease._document("4712", 0, 0, None)))
    with pytest.raises(LostError, match=r"^a\n"), losses_named(newcomer(tmp_path)):
        raise LostError("a", "b", "c")
    assert not (tmp_path / "exit.json").exists()


@pytest.mark.parametrize("has_met", [False, True])
def test_a_rank_that_is_refused_before_it_has_met_the_others_speaks_for_them(tmp_path, has_met):
    """They are stopped while they wait, and what they could say would have the job started again."""
    refused = survivor(tmp_path) if has_met else newcomer(tmp_path)
    with pytest.raises(ConfigError), losses_named(refused):
        raise ConfigError("local rank 0 has no CUDA device", "b", "c")
    with pytest.raises(LostError), losses_named(newcomer(tmp_path)):
        raise LostError("SIGTERM while the ranks were still meeting", "b", "c")
    report = json.loads((tmp_path / "exit.json").read_text())
    assert report["class"] == ("rank_lost" if has_met else "usage")
    assert report["status"] == (75 if has_met else 2)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError(CLOSED)], ids=str)
def test_other_errors_pass(tmp_path, error):
    with pytest.raises(type(error)) as raised, losses_named(survivor(tmp_path)):
        raise error
    assert raised.value is error
    assert not (tmp_path / "exit.json").exists()


def collective_without_rank_1() -> str:
    """What rank 0 says when rank 1 has left before a collective."""
    dist.barrier()  # both have come: one that leaves while the other still connects ends that one's start
    if dist.get_rank() == 1:
        dist.barrier = lambda: None  # the pool's, at its end
        dist.destroy_process_group()
        return ""
    dist.barrier = lambda: None
    try:
        with losses_named(survivor()):
            dist.all_reduce(torch.ones(1))
    except LostError as error:
        return error.what
    return ""


def test_a_connection_that_gloo_loses_is_known_by_its_words(ranks):
    assert "lost the connection to another rank" in ranks.run(2, collective_without_rank_1)
