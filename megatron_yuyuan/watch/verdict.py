"""What is said of a lost rank: three lines for people, and SAVE/exit.json."""

import signal
from pathlib import Path

from megatron_yuyuan import launcher
from megatron_yuyuan.errors import BrokenError, LostError, ShortOfMemoryError, YuyuanError
from megatron_yuyuan.watch.heartbeat import Beat, Rank
from megatron_yuyuan.watch.saved import find_checkpoint

REASONS: dict[int, str] = {
    signal.SIGKILL: "somebody killed it, or the kernel did because memory ran out",
    signal.SIGSEGV: "native code reached for memory that is not its own",
    signal.SIGABRT: "native code gave up; its message stands above",
    signal.SIGBUS: "a file that is mapped into memory shrank, or /dev/shm is full",
}
"""What usually sends a signal."""
SAID = (LostError.kind, BrokenError.kind, ShortOfMemoryError.kind)
"""Classes of exit.json that whoever wrote it has also printed."""


def again(checkpoint: Path | None) -> str:
    """What to try where a rank was lost."""
    where = f"which goes on from {checkpoint}" if checkpoint else "which begins anew"
    return f"the same command again, {where}"


def died(
    rank: Rank, status: int | None, beat: Beat, stack: str, checkpoint: Path | None
) -> LostError:
    """Of a rank whose end was seen. status: its exit status, or minus the signal; None where nobody
    knows. stack: where a fault happened, if it was one."""
    if status is None:
        why = "a signal killed it: nobody saw which; often memory ran out"
        return LostError(f"{rank} died {beat.place}", why, again(checkpoint))
    how = f"signal {-status} ({name_of(-status)})" if status < 0 else f"status {status}"
    why = REASONS.get(-status, "its last messages stand above")
    place = f"; it was in {stack}" if stack else ""
    return LostError(f"{rank} died: {how} {beat.place}", f"{why}{place}", again(checkpoint))


def name_of(number: int) -> str:
    """`SIGKILL`; `SIG40` for a real-time signal, which has no name."""
    return signal.Signals(number).name if number in list(signal.Signals) else f"SIG{number}"


def not_awaited(
    rank: Rank, asked: str, seconds: float, beat: Beat, checkpoint: Path | None
) -> LostError:
    """The error for a rank that was killed so long after a signal had asked it to stop."""
    return LostError(
        f"{rank} was killed {beat.place}, {seconds:.0f} s after {asked}",
        f"whoever sent {asked} did not wait for its save, and an unfinished one does not count",
        f"{again(checkpoint)}; next time a signal that comes earlier (SLURM: --signal=USR1@SECONDS)",
    )


def launcher_died(rank: Rank, launcher: int, beat: Beat, checkpoint: Path | None) -> LostError:
    """The error for a rank that the kernel killed because torchrun had died."""
    return LostError(
        f"its launcher (pid {launcher}) died, and {rank} with it {beat.place}",
        "a rank that outlived torchrun would be in the next one's way",
        again(checkpoint),
    )


def did_not_come(waiting: Rank, absent: dict, checkpoint: Path | None) -> LostError:
    """The error for a rank that hangs. absent: its heartbeat file."""
    name = f"rank {absent['rank']} ({absent['host']}, pid {absent['pid']})"
    return LostError(
        f"{name} did not come: rank {waiting.rank} waited for it {absent['place']}",
        f"for {absent['idle_seconds']:.0f} s it has been here: {absent['stack']}",
        f"{again(checkpoint)}; if it was only slow, a longer --distributed-timeout-minutes",
    )


def went_astray(
    waiting: Rank, beats: list[dict], odd: list[dict], checkpoint: Path | None
) -> LostError:
    """Of ranks that wait in another collective than most. beats: the heartbeat files there are; odd: theirs."""
    names = ", ".join(f"rank {b['rank']} ({b['host']}, pid {b['pid']})" for b in odd)
    usual = next(b["stack"] for b in beats if "stack" in b and b not in odd)
    return LostError(
        f"{names} waited elsewhere than the other ranks {odd[0]['place']}: rank {waiting.rank} waited in vain",
        f"rank {odd[0]['rank']}: {odd[0]['stack']}; most ranks: {usual}",
        again(checkpoint),
    )


def hosts_gone(silent: list[dict], checkpoint: Path | None) -> LostError:
    """Of ranks whose heartbeat files stand still."""
    hosts = ", ".join(sorted({b["host"] for b in silent}))
    ranks = ", ".join(str(b["rank"]) for b in silent)
    return LostError(
        f"host {hosts} is gone with rank {ranks}, last heard of {silent[0]['place']}",
        "nothing there writes a heartbeat: the machine, its network or its file system failed",
        again(checkpoint),
    )


def unknown(
    rank: Rank, beat: Beat, beats: list[dict], late: bool, checkpoint: Path | None
) -> LostError:
    """The error for a lost rank that nobody can name. beats: the heartbeat files there are."""
    what = "waited in vain for another rank" if late else "lost the connection to another rank"
    places = "; ".join(f"rank {b['rank']}: {b.get('stack', b['place'])}" for b in beats)
    return LostError(
        f"rank {rank.rank} ({rank.host}) {what} {beat.place}",
        places
        or "without --save no heartbeats are kept that could name it, nor before the first step",
        again(checkpoint),
    )


def reported(report: dict) -> LostError:
    """What exit.json says already, with its status."""
    status = report.get("status") or LostError.status
    remedy = again(report.get("resume_from")) if status == LostError.status else "mend that first"
    error = LostError(str(report.get("cause")), str(report.get("why")), remedy)
    error.status = status
    error.said = launcher.by_torchrun() or report.get("class") in SAID
    return error


def report_of(error: YuyuanError, save: str, step: int, culprit: dict, number: int = 0) -> dict:
    """exit.json for an error. culprit: rank, host and pid of the one that was lost, as far as they are
    known; number: of the signal that killed it."""
    saved = find_checkpoint(save)
    return {
        "class": error.kind,
        "status": error.status,
        "step": step,
        "cause": error.what,
        "host": culprit.get("host"),
        "rank": culprit.get("rank"),
        "pid": culprit.get("pid"),
        "signal": name_of(number) if number else None,
        "why": error.why,
        "resume_from": str(saved) if saved else None,
    }
