"""What is known of a process, and said to it, after its end too."""

import signal
import subprocess
import sys

import pytest

from megatron_yuyuan.watch import processes
from megatron_yuyuan.watch.processes import Process, process_age

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc who lives")


def refused(_pid: int) -> int:
    raise OSError


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_a_signal_reaches_a_process_and_nobody_after_its_end(monkeypatch, has_pidfd):
    if not has_pidfd:
        monkeypatch.setattr(processes.os, "pidfd_open", refused)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process(child.pid)
    assert not process.ended()
    process.send(signal.SIGKILL)
    assert process.ended(60.0)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    process.send(signal.SIGKILL)


def test_the_age_of_a_process_is_known_without_proc_too(monkeypatch):
    assert 0 < process_age() < 86400
    monkeypatch.setattr(processes, "start_time", lambda pid: "")
    assert 0 < process_age() < 86400
