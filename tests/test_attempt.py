"""A run that may not write where it is told to, or need not try again, is refused before its first step."""

import json
import os
import sys
import time

import pytest
from commands import train_flags
from pretraining import pretrained

from megatron_yuyuan import attempt
from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import DataError, LostError, YuyuanError
from megatron_yuyuan.train.stopping import Stopping
from megatron_yuyuan.watch import exit_file, lease
from megatron_yuyuan.watch.exit_file import claim_exit, read_exit
from megatron_yuyuan.watch.heartbeat import Rank, Watched
from megatron_yuyuan.watch.processes import process_age

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc who lives")


def refusal(command: tuple) -> tuple[str, str]:
    """Class and words of the error that ends a run on this rank."""
    try:
        pretrained(command)
    except YuyuanError as error:
        return error.kind, error.what
    return "", ""


def refused(ranks, prepared, save, **words) -> tuple[str, str]:
    """What is said of a run in a directory that has a lease with these words."""
    save.mkdir()
    document = lease._document("4711", 0, 0, None) | {"pid": os.getpid(), **words}
    (save / "lease.json").write_text(json.dumps(document))
    return ranks.run(2, refusal, train_flags(prepared, save))


def test_a_directory_in_use_is_left_as_it_is(ranks, prepared, tmp_path):
    kind, what = refused(ranks, prepared, tmp_path / "run")
    assert kind == "busy"
    assert what.startswith(f"{tmp_path / 'run'} is in use by job 4711 on ")
    assert os.listdir(tmp_path / "run") == ["lease.json"]


def test_a_run_that_comes_no_further_says_so_in_its_report(ranks, prepared, tmp_path):
    kind, what = refused(ranks, prepared, tmp_path / "run", ended=True, starts=3, furthest=8)
    assert (kind, what) == ("no_progress", "3 starts in a row came no further than step 8")
    report = json.loads((tmp_path / "run" / "exit.json").read_text())
    assert (report["class"], report["status"], report["cause"]) == ("no_progress", 2, what)
    assert os.listdir(tmp_path / "run") == ["exit.json"]


def report_of_before(save, **words) -> None:
    """The report of a run that ended an hour before this process was started."""
    (save / "exit.json").write_text(json.dumps({"status": 75, "step": 8} | words))
    moment = time.time() - process_age() - 3600
    os.utime(save / "exit.json", (moment, moment))


def start_alone(save, monkeypatch) -> YuyuanError:
    """What rank 0 says of a start to which no other rank comes."""

    def join(*_):
        raise LostError("waited 600 s for rank 1 of 2", "b", "c")

    monkeypatch.setattr(attempt.mesh_module, "join", join)
    config = Config().replace(save=str(save))
    watched = Watched(Rank(0, 2, ""), str(save))
    start_of_run = attempt.mesh_of_job(config, Stopping(config.training), watched, {})
    with pytest.raises(YuyuanError) as error, start_of_run:
        pytest.fail("it has begun")
    return error.value


def test_a_rank_that_never_comes_does_not_have_the_job_started_for_ever(tmp_path, monkeypatch):
    for kind in ["rank_lost"] * 3 + ["no_progress"]:
        report_of_before(tmp_path)
        assert start_alone(tmp_path, monkeypatch).kind == kind
        report = read_exit(tmp_path)
        assert (report["class"], report["status"]) == (kind, 75 if kind == "rank_lost" else 2)
    assert report["cause"] == "3 starts in a row ended before their ranks had met"


def test_what_a_faster_rank_says_is_not_forgotten_by_rank_0(tmp_path, monkeypatch):
    """Its machine has no GPU; rank 0, which is stopped while it waits, must not have the job requeued."""
    monkeypatch.setattr(exit_file.platform, "node", lambda: "node7")
    refused = {"class": "usage", "status": 2, "cause": "no CUDA device", "why": "b", "rank": 1}
    assert claim_exit(tmp_path, refused)
    moment = time.time() - process_age() - 3  # rank 0 was started three seconds later
    os.utime(tmp_path / "exit.json", (moment, moment))
    monkeypatch.undo()
    start_alone(tmp_path, monkeypatch)
    assert (read_exit(tmp_path)["class"], read_exit(tmp_path)["status"]) == ("usage", 2)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_refused_before_the_ranks_meet_is_reported_by_any_rank(tmp_path, rank):
    report_of_before(tmp_path)
    watched = Watched(Rank(rank, 2, ""), str(tmp_path))
    with pytest.raises(DataError), attempt.refusal_reported(watched):
        raise DataError("a", "b", "c")
    report = read_exit(tmp_path)
    assert (report["class"], report["status"], report["rank"]) == ("data", 2, rank)
    assert report["refused"] is True
    assert report["step"] == 8  # how far the run had come is still known


def test_what_is_refused_is_not_reported_to_another_job_or_without_a_directory(tmp_path):
    (tmp_path / "lease.json").write_text(json.dumps(lease._document("4712", 0, 0, None)))
    for save in (str(tmp_path), str(tmp_path / "run"), ""):
        with pytest.raises(DataError), attempt.refusal_reported(Watched(Rank(0, 1, ""), save)):
            raise DataError("a", "b", "c")
    assert os.listdir(tmp_path) == ["lease.json"]


def test_a_rank_may_report_from_the_moment_the_lease_is_held(tmp_path, monkeypatch):
    """Not only when the mesh is laid, which is where a network fails first."""
    owned, watched = [], Watched(Rank(0, 1, ""), str(tmp_path))
    monkeypatch.setattr(attempt.mesh_module, "join", lambda *_: None)
    monkeypatch.setattr(
        attempt.mesh_module, "start", lambda *_: owned.append(watched.heartbeat.read().owns)
    )
    config = Config().replace(save=str(tmp_path))
    with attempt.mesh_of_job(config, Stopping(config.training), watched, {}):
        assert owned == [True]
