"""Processes that work: all tasks done once, errors passed on, a death noticed, no orphan left."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from megatron_yuyuan.data import workers
from megatron_yuyuan.data.workers import run_in_processes
from megatron_yuyuan.errors import DataError, LostError


def test_every_task_is_done_once_and_what_is_told_arrives(monkeypatch):
    monkeypatch.setattr(workers, "TASKS_OF_A_PROCESS", 20)  # no process is renewed

    def work(task, tell):
        tell(task * 10)
        tell(os.getpid())

    for processes in (1, 3, 50):
        told = list(run_in_processes(work, list(range(20)), processes))
        assert Counter(task for task, _ in told) == dict.fromkeys(range(20), 3)
        assert {task: value for task, value in told if value == task * 10 and task} == {
            task: task * 10 for task in range(1, 20)
        }
        assert len({value for _, value in told if value and value > 1000}) <= processes
        assert os.getpid() not in {value for _, value in told}
    assert list(run_in_processes(work, [], 2)) == []


def test_a_process_does_so_many_tasks_and_another_takes_its_place(monkeypatch):
    monkeypatch.setattr(workers, "TASKS_OF_A_PROCESS", 3)
    told = run_in_processes(lambda task, tell: tell(os.getpid()), list(range(20)), 2)
    tasks_of = Counter(value for _, value in told if value)
    assert tasks_of.total() == 20 and max(tasks_of.values()) == 3 and len(tasks_of) >= 7


def test_the_first_error_ends_it():
    def refuse(task, tell):
        if task == 3:
            raise DataError("what", "why", "try")

    with pytest.raises(DataError) as error:
        list(run_in_processes(refuse, list(range(10)), 2))
    assert (error.value.what, error.value.why, error.value.remedy) == ("what", "why", "try")

    def fail(task, tell):
        raise KeyError("our own mistake")

    with pytest.raises(RuntimeError, match="our own mistake") as error:
        list(run_in_processes(fail, [1], 2))
    assert "in fail" in str(error.value)  # the worker's traceback


def test_a_process_that_dies_is_named_with_its_task():
    def work(task, tell):
        if task == "big.xml":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    begun = time.monotonic()
    with pytest.raises(LostError, match=r"died \(signal 9\) while it read big\.xml") as error:
        list(run_in_processes(work, ["small.xml", "big.xml"], 2))
    assert time.monotonic() - begun < 30  # and did not wait for the other
    assert error.value.status == 75 and "--workers" in error.value.remedy


def test_a_process_that_dies_between_two_tasks_or_before_the_first_is_lost_too(monkeypatch):
    hear = workers._Worker.hear

    def hear_and_kill(worker):
        told = hear(worker)
        if told is None:
            worker.process.kill()
            worker.process.join()
        return told

    with monkeypatch.context() as patch, pytest.raises(LostError, match="signal 9"):
        patch.setattr(workers._Worker, "hear", hear_and_kill)
        list(run_in_processes(lambda task, tell: None, list(range(20)), 2))
    die = "import os; os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), 9)); "
    run = "list(run_in_processes(print, [1], 1))"
    imports = "from megatron_yuyuan.cli import run_command\n"
    imports += "from megatron_yuyuan.data.workers import run_in_processes\n"
    script = f"{imports}{die}run_command(lambda: {run})"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 75 and ended.stderr.startswith("error: the worker process")


ORPHANS = """
import os, sys, time
from megatron_yuyuan.data import workers
from megatron_yuyuan.data.workers import run_in_processes
def work(task, tell):
    tell(os.getpid())
    while True:
        time.sleep(0.05)
        tell(0)
for task, pid in run_in_processes(work, [1, 2], 2):
    if pid:
        print(pid, flush=True)
"""


def test_workers_end_when_their_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(is_alive(pid) for pid in workers)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
