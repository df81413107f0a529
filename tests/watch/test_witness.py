"""What is said of a rank that dies, by the one that sees it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_yuyuan.watch import lease
from megatron_yuyuan.watch.exit_file import claim_exit, read_exit
from megatron_yuyuan.watch.heartbeat import Heartbeat, heartbeat_path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a witness needs Linux's /proc")
RANK = """
import ctypes, os, sys, time
from megatron_yuyuan.cli import run_command
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.watch import witness
from megatron_yuyuan.watch.witness import watched

def hang():
    time.sleep(60)

def read_outside():
    ctypes.string_at(0)

def stop():
    raise ConfigError("a", "b", "c")

ACTIONS = {"hang": hang, "hang new": hang, "fault": read_outside, "abort": os.abort, "refuse": stop}
ACTIONS["break"] = lambda: 1 / 0

def wait_for_a_signal(own):
    while not own.signals.asked():
        time.sleep(0.01)
    print(own.signals.asked(), flush=True)

def save_slowly(own):
    own.heartbeat.beat("save", 42)
    wait_for_a_signal(own)
    hang()

def main():
    witness.GRACE = 0.2
    with watched(sys.argv[1], float(sys.argv[2])) as own:
        own.heartbeat.beat("step" if "new" not in sys.argv[3] else "start", 41)
        print("ready", flush=True)
        if sys.argv[3] == "return":
            return
        if sys.argv[3] == "stop":
            return wait_for_a_signal(own)
        if sys.argv[3] == "save":
            save_slowly(own)
        ACTIONS[sys.argv[3]]()

assert "torch" not in sys.modules
run_command(main)
"""
"""argv: SAVE, seconds a collective may wait, what to do."""


def rank(save: Path, action: str, timeout: float = 60.0, **environment: str) -> subprocess.Popen:
    """Rank 3 of 4, in step 42, about to do something."""
    process = subprocess.Popen(
        [sys.executable, "-c", RANK, str(save), str(timeout), action],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"RANK": "3", "WORLD_SIZE": "4"} | environment,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def appeared(path: Path) -> dict:
    """A JSON file, once it is there."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return json.loads(path.read_text())


def test_a_killed_rank_is_named_with_its_signal_and_step(tmp_path):
    (tmp_path / "iter_0000040").mkdir()
    (tmp_path / "iter_0000040" / "manifest.json").touch()
    (tmp_path / "iter_0000041.tmp").mkdir()
    process = rank(tmp_path, "hang")
    process.kill()
    report = appeared(tmp_path / "exit.json")  # nobody has waited for the process yet
    assert (report["class"], report["status"], report["step"]) == ("rank_lost", 75, 41)
    assert (report["rank"], report["pid"], report["signal"]) == (3, process.pid, "SIGKILL")
    assert report["resume_from"] == str(tmp_path / "iter_0000040")
    assert process.stderr.read() == (
        f"error: rank 3 ({report['host']}, pid {process.pid}) died: signal 9 (SIGKILL) in step 42\n"
        "  why: somebody killed it, or the kernel did because memory ran out\n"
        f"  try: the same command again, which goes on from {tmp_path}/iter_0000040\n"
    )
    process.wait()


def test_a_fault_is_named_with_the_place_where_it_happened(tmp_path):
    process = rank(tmp_path, "fault")
    report = appeared(tmp_path / "exit.json")
    assert report["signal"] == "SIGSEGV"
    assert "; it was in string_at (" in report["why"]
    assert " < read_outside (<string>:" in report["why"]
    assert "which begins anew" in process.stderr.read()
    process.wait()


def test_a_rank_that_gives_up_waiting_names_the_one_it_waited_for(tmp_path):
    """NCCL aborts the process whose collective takes too long, not the one that does not come to it."""
    path = heartbeat_path(tmp_path, 1)
    path.parent.mkdir()
    late = {"rank": 1, "host": "node2", "pid": 7, "place": "in step 42", "idle_seconds": 9.0}
    path.write_text(json.dumps(late | {"waits": False, "stack": "sleep (x.py:3)"}))
    process = rank(tmp_path, "abort")
    report = appeared(tmp_path / "exit.json")
    assert report["cause"] == "rank 1 (node2, pid 7) did not come: rank 3 waited for it in step 42"
    assert (report["rank"], report["host"], report["pid"]) == (1, "node2", 7)
    process.communicate()


def test_only_the_first_of_several_losses_is_told(tmp_path):
    first, second = rank(tmp_path, "hang"), rank(tmp_path, "hang")
    first.kill()
    report = appeared(tmp_path / "exit.json")
    second.kill()
    assert second.stderr.read() == ""  # its witness has ended with nothing to say
    assert appeared(tmp_path / "exit.json") == report
    for process in (first, second):
        process.wait()


def test_a_bug_is_reported_beside_its_traceback(tmp_path):
    process = rank(tmp_path, "break")
    report = appeared(tmp_path / "exit.json")
    assert (report["class"], report["status"], report["signal"]) == ("internal", 1, None)
    assert "ended with an error of this program" in report["cause"]
    said = process.stderr.read()
    assert said.count("ZeroDivisionError") == 1 and "error: rank" not in said
    process.wait()


@pytest.mark.parametrize(
    ("action", "number"), [("return", 0), ("refuse", 0), ("hang", signal.SIGHUP)], ids=str
)
def test_an_end_of_which_the_rank_or_its_killer_speaks_is_no_loss(tmp_path, action, number):
    process = rank(tmp_path, action)
    if number:
        process.send_signal(number)
    assert "rank 3" not in process.stderr.read()  # until the witness has gone too
    assert not (tmp_path / "exit.json").exists()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_comes_before_torch_does_not_end_the_rank(tmp_path, number):
    process = rank(tmp_path, "stop")
    process.send_signal(number)
    said, complaints = process.communicate(timeout=60)
    assert (said, complaints, process.returncode) == (f"{number.name}\n", "", 0)


def test_a_rank_that_is_killed_in_the_save_it_was_asked_for_is_named_with_that_signal(tmp_path):
    (tmp_path / "iter_0000040").mkdir()
    (tmp_path / "iter_0000040" / "manifest.json").touch()
    process = rank(tmp_path, "save")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    process.kill()
    report = appeared(tmp_path / "exit.json")
    assert (report["class"], report["status"], report["signal"]) == ("rank_lost", 75, "SIGKILL")
    place = f"pid {process.pid}\\) was killed while it saved step 42, \\d+ s after SIGTERM"
    assert re.search(place, report["cause"])
    assert report["why"].startswith("whoever sent SIGTERM did not wait for its save")
    assert report["resume_from"] == str(tmp_path / "iter_0000040")
    assert f"goes on from {tmp_path}/iter_0000040; next time a signal" in process.stderr.read()
    process.wait()


def test_a_loss_is_said_where_it_cannot_be_written(tmp_path):
    (tmp_path / "exit.json").mkdir()
    process = rank(tmp_path, "hang")
    process.kill()
    assert "died: signal 9 (SIGKILL) in step 42" in process.stderr.read()
    process.wait()


@pytest.mark.parametrize("stopped", [False, True], ids=["sleeps", "stopped"])
def test_a_rank_that_hangs_has_its_stack_in_its_heartbeat(tmp_path, stopped):
    path, deadline = heartbeat_path(tmp_path, 3), time.monotonic() + 60
    path.parent.mkdir()
    path.write_text('{"stack": "of the run before"}')
    process = rank(tmp_path, "hang", timeout=1.0)
    if stopped:
        process.send_signal(signal.SIGSTOP)
    while path.exists() and "run before" in path.read_text():
        assert time.monotonic() < deadline
    while "stack" not in (beat := appeared(path)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (beat["rank"], beat["pid"], beat["iteration"], beat["phase"]) == (
        3,
        process.pid,
        41,
        "step",
    )
    assert beat["waits"] is False
    expected = "stopped by a signal" if stopped else "hang (<string>:"
    assert beat["stack"].startswith(expected)
    process.kill()
    process.communicate()


def test_what_a_rank_does_is_said_in_words():
    heartbeat, words = Heartbeat(), []
    for phase in ("start", "load", "step", "evaluation", "save", "end"):
        heartbeat.beat(phase, 7)
        words.append(heartbeat.read().place)
    assert words[0] == words[1] == "while it started"
    assert words[1:] == [
        "while it started", "in step 8", "in the evaluation after step 7", "while it saved step 7",
        "while it ended after step 7",
    ]  # fmt: skip
    assert 0 <= heartbeat.read().idle < 60


@pytest.mark.parametrize(
    ("action", "kind", "ends"),
    [("hang", "rank_lost", True), ("hang", "internal", True), ("hang", "signal", False),
     ("hang new", "rank_lost", False)],
)  # fmt: skip
def test_a_rank_does_not_wait_for_ever_for_one_that_is_lost(tmp_path, action, kind, ends):
    """Not even where its collective does: but the report must be that of this run, and of a loss."""
    process = rank(tmp_path, action, timeout=1.0)
    claim_exit(tmp_path, {"class": kind, "cause": "rank 1 died"})
    if ends:
        assert process.wait(60) == -signal.SIGKILL
    else:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.kill()
    assert process.communicate()[1] == ""
    assert read_exit(tmp_path)["cause"] == "rank 1 died"


@pytest.mark.parametrize("held", [True, False])
def test_nothing_is_reported_into_a_directory_that_another_job_holds(tmp_path, held):
    document = lease._document("4711", 0, 0, None) | {"ended": not held}
    (tmp_path / lease.LEASE_FILE).write_text(json.dumps(document))
    process = rank(tmp_path, "hang new")
    process.kill()
    assert "died: signal 9 (SIGKILL) while it started" in process.stderr.read()
    assert (tmp_path / "exit.json").exists() != held
    process.wait()


LAUNCHER = f"""
import os, subprocess, sys, time
ranks = [subprocess.Popen([sys.executable, "-c", {RANK!r}, *sys.argv[1:]],
                          env=os.environ | {{"TORCHELASTIC_RUN_ID": "job", "RANK": "0"}})]
print(ranks[0].pid, flush=True)
time.sleep(60)
"""


def test_no_rank_outlives_a_killed_launcher(tmp_path):
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path), "60", "hang"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = [launcher.stdout.readline().strip() for _ in range(2)]
    [pid] = [int(line) for line in lines if line != "ready"]
    launcher.kill()
    said = launcher.stderr.read()  # to its end: rank and witness have closed it
    assert f"error: its launcher (pid {launcher.pid}) died, and rank 0 (" in said
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()
    assert appeared(tmp_path / "exit.json")["class"] == "rank_lost"
    launcher.wait()
