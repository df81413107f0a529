"""What Linux knows of a process: whether it lives, how it ended; and a death with the parent's."""

import ctypes
import fcntl
import os
import select
import signal
import struct
import time
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
"""linux/prctl.h."""
PIDFD_GET_INFO, PIDFD_INFO_EXIT = 0xC040FF0B, 1 << 3
"""linux/pidfd.h, Linux 6.15: how a process ended, also when its parent has asked already."""
POLL = 0.05
"""Seconds between two looks where the kernel has no pidfd (before Linux 5.3)."""
_IMPORTED = time.monotonic()


def die_with_parent() -> None:
    """Have Linux kill this process (SIGKILL) when the one that started it ends: a killed torchrun
    leaves no rank behind."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel knew of our wish
        os.kill(os.getpid(), signal.SIGKILL)


class Process:
    """Another process of this machine, from now to its end. Nobody's pid is mistaken for it where the
    kernel has pidfds."""

    def __init__(self, pid: int):
        self.pid, self._pidfd = pid, None
        try:
            self._pidfd = os.pidfd_open(pid)
        except (AttributeError, OSError):  # another system, an old kernel, or it is gone
            self._began = start_time(pid)

    def ended(self, seconds: float = 0.0) -> bool:
        """Wait so long for its end; whether it has come."""
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            return bool(poll.poll(1000 * seconds))
        deadline = time.monotonic() + seconds
        while is_alive(self.pid, self._began):
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(POLL, seconds))
        return True

    def status(self) -> int | None:
        """How it ended: its exit status, or minus the signal that killed it. None where nobody has
        seen it: its parent asked first, and the kernel forgot."""
        stat = _stat(self.pid)
        if stat and stat[0] == "Z":
            return os.waitstatus_to_exitcode(int(stat[49]))
        if self._pidfd is None:
            return None
        information = bytearray(struct.pack("=Q56x", PIDFD_INFO_EXIT))
        try:
            fcntl.ioctl(self._pidfd, PIDFD_GET_INFO, information)
        except OSError:
            return None
        known, code = struct.unpack("=Q52xi", information)
        return os.waitstatus_to_exitcode(code) if known & PIDFD_INFO_EXIT else None

    def send(self, number: int) -> None:
        """Send it a signal; nothing where it has ended."""
        with suppress(ProcessLookupError):
            if self._pidfd is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(self._pidfd, number)

    def is_stopped(self) -> bool:
        """Whether a signal (SIGSTOP, Ctrl-Z, a debugger) holds it."""
        return (_stat(self.pid) or " ")[0] in "Tt"


def start_time(pid: int) -> str:
    """When a process began, in ticks since the machine started; empty where there is none. With it, a
    pid that was given to another process is not taken for the first."""
    stat = _stat(pid)
    return stat[19] if stat else ""


def process_age() -> float:
    """Seconds since this process was started; since it asks of processes, where the system does not say."""
    began = start_time(os.getpid())
    if not began:
        return time.monotonic() - _IMPORTED
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(began) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int, began: str) -> bool:
    """Whether the process that began then still computes."""
    stat = _stat(pid)
    return bool(stat) and stat[0] not in "ZX" and stat[19] == began


def machine() -> str:
    """Where pids mean the same: one start of one kernel, one pid namespace. Empty where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """Fields 3 (state) to 52 (exit code) of /proc/PID/stat, proc(5); empty where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name of the program may hold anything
