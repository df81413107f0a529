"""metrics.jsonl: one object an event, readable after a kill, exact to the bit."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_yuyuan import log as log_module
from megatron_yuyuan.errors import DataError, SpaceError
from megatron_yuyuan.log import (
    SCHEMA,
    Log,
    MegatronLines,
    MetricsFile,
    Sink,
    duration,
    read_metrics,
    readers_may_leave,
)

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full")

FIGURES = {
    "iteration": 7,
    "lm_loss": 0.1 + 0.2,
    "grad_norm": 1.0,
    "learning_rate": 1e-4,
    "loss_scale": 1.0,
    "seconds": 0.5,
    "consumed_samples": 8,
    "global_batch_size": 8,
    "tokens_per_second": 12.0,
    "tflops_per_device": 45.6,
    "memory_bytes": 3 * 2**29,
    "eta_seconds": 3723.4,
}


def lines_of(*events: tuple[str, dict], interval: int = 1, **options) -> list[str]:
    """What a log file shows of these events, in a run of 10 iterations."""
    said: list[str] = []
    console = MegatronLines(said.append, interval, last=10, **options)
    for event, values in events:
        console.event(event, values)
    return said


def test_a_sink_that_fails_at_its_end_keeps_no_other_open():
    class Failing(Sink):
        def __init__(self, name):
            self.name = name

        def close(self):
            closed.append(self.name)
            if self.name == "second":
                raise SpaceError("full", "no room", "room")

    closed: list[str] = []
    log = Log(None, True)
    for name in ("first", "second", "third"):
        log.add(Failing(name))
    with pytest.raises(SpaceError), log:
        pass
    assert closed == ["third", "second", "first"]


def test_floats_are_written_to_the_last_bit(tmp_path):
    Log(tmp_path, True).event("step", **FIGURES)
    line = (tmp_path / "metrics.jsonl").read_text()
    assert '"lm_loss": 0.30000000000000004' in line
    written = json.loads(line)
    assert 0 <= time.time() - written.pop("time") < 60
    assert written == {"event": "step", "schema": SCHEMA, **FIGURES}


def test_a_silent_rank_writes_nothing(tmp_path, capsys):
    log = Log(tmp_path / "run", False)
    log.event("step", **FIGURES)
    log.line("hello")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_nothing_is_written_before_the_first_event(tmp_path):
    log = Log(tmp_path / "run", True)
    log.line("hello")
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*metrics\.jsonl"):
        Log(tmp_path / "file", True).event("step", **FIGURES)


def test_a_reader_who_leaves_does_not_end_the_run():
    program = (
        "from megatron_yuyuan.log import Log\n"
        "import sys\n"
        "log = Log(None, True)\n"
        "for _ in range(20000): log.line('x' * 80)\n"
        "print('done', file=sys.stderr)"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == "done\n"
    assert writer.wait() == 0


@needs_full
def test_a_full_disk_under_stdout_ends_the_run_once():
    """With three lines and status 2, and nothing more at the interpreter's exit."""
    program = (
        "from megatron_yuyuan.cli import run_command\n"
        "from megatron_yuyuan.log import Log\n"
        "run_command(lambda: Log(None, True).line('hello'))"
    )
    with FULL.open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.stderr.startswith("error: cannot write the output: No space left on device\n")
    assert [line[:7] for line in ended.stderr.splitlines()] == ["error: ", "  why: ", "  try: "]
    assert ended.returncode == 2


NO_SPACE = ("ENOSPC", "EDQUOT", "EFBIG")


@pytest.mark.parametrize("name", NO_SPACE)
def test_stdout_without_room_is_an_error_and_is_not_written_again(monkeypatch, name):
    silenced = []
    monkeypatch.setattr(log_module, "silence", silenced.append)
    with pytest.raises(SpaceError, match="cannot write the output") as refused, readers_may_leave():
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
    assert (refused.value.status, refused.value.kind) == (2, "space")
    assert silenced == [sys.stdout]


def test_another_fault_of_stdout_is_a_bug_of_ours():
    with pytest.raises(OSError, match="Bad file"), readers_may_leave():
        raise OSError(errno.EBADF, "Bad file descriptor")


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "space") for name in NO_SPACE), ("EACCES", "data"), ("EIO", "data")]
)
def test_metrics_say_whether_the_disk_is_full_or_refuses(tmp_path, monkeypatch, name, kind):
    def refuse(*_):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr(MetricsFile, "_open", refuse)
    with pytest.raises(DataError, match=r"cannot write .*metrics\.jsonl") as refused:
        Log(tmp_path, True).event("step", **FIGURES)
    assert (refused.value.kind, isinstance(refused.value, SpaceError)) == (kind, kind == "space")


@needs_full
def test_metrics_on_a_full_disk_are_said_so_by_the_end_of_the_run_too(tmp_path):
    """What waits to be written is tried again when the file is closed: no other error takes the place."""
    (tmp_path / "metrics.jsonl").symlink_to(FULL)
    log = Log(tmp_path, True)
    with pytest.raises(SpaceError, match=r"metrics\.jsonl: No space left"), log:
        log.event("step", **FIGURES)


def test_a_restart_takes_back_what_came_after_its_checkpoint(tmp_path):
    log = Log(tmp_path, True)
    for iteration in (1, 2, 3):
        log.event("step", iteration=iteration, lm_loss=float(iteration))
    log.event("restart", iteration=1)
    log.event("step", iteration=2, lm_loss=20.0)
    log.event("evaluation", iteration=2, validation_loss=5.0)
    steps = read_metrics(tmp_path / "metrics.jsonl", "step")
    assert [(s["iteration"], s["lm_loss"]) for s in steps] == [(1, 1.0), (2, 20.0)]


def test_a_run_knows_that_another_wrote_before_it(tmp_path):
    log = Log(tmp_path, True)
    assert not log.has_history
    log.event("step", iteration=1)
    assert Log(tmp_path, True).has_history


def test_a_line_cut_by_a_kill_is_skipped_and_closed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "step", "schema": 1, "iteration": 1}\n{"event": "st')
    Log(tmp_path, True).event("step", iteration=2)
    assert [s["iteration"] for s in read_metrics(path, "step")] == [1, 2]


SKIPPED = FIGURES | {"lm_loss": float("nan"), "reason": "not finite", "samples": [0, 7]}
SKIPPED |= {"next_loss_scale": 1.0}
OVERFLOW = FIGURES | {"grad_norm": float("inf"), "reason": "overflow", "samples": [8, 15]}
OVERFLOW |= {"loss_scale": 65536.0, "next_loss_scale": 32768.0}


def test_figures_that_are_not_finite_become_null(tmp_path):
    log = Log(tmp_path, True)
    log.event("skip", **SKIPPED)
    log.event("skip", **OVERFLOW)
    first, second = read_metrics(tmp_path / "metrics.jsonl", "skip")
    assert (first["lm_loss"], first["grad_norm"], first["samples"]) == (None, 1.0, [0, 7])
    assert (second["lm_loss"], second["grad_norm"]) == (FIGURES["lm_loss"], None)


def test_steps_passed_over_are_said_and_counted_once():
    first, second = ("skip", SKIPPED), ("skip", OVERFLOW | {"iteration": 8})
    nan, overflow, line, _ = lines_of(first, second, ("skip", SKIPPED), interval=8)
    assert nan.startswith(
        "warning: iteration 7 skipped: not finite, loss nan, gradient norm 1.0, on"
    )
    assert overflow.startswith("warning: iteration 8 skipped: overflow, loss 0.3")
    assert overflow.endswith("gradient norm inf, on samples 8 to 15, loss scale 65536 -> 32768")
    assert nan.endswith("on samples 0 to 7")
    assert "| number of skipped iterations:   2 | number of nan iterations:   1 |" in line
    assert "lm loss" not in line  # as in Megatron-LM: no step was taken
    steps = [("step", FIGURES | {"iteration": 9}), ("step", FIGURES | {"iteration": 10})]
    *_, mixed, after = lines_of(first, second, *steps, interval=9)
    assert " lm loss: 3.000000E-01 |" in mixed
    assert "| number of skipped iterations:   2 | number of nan iterations:   1 |" in mixed
    assert "| number of skipped iterations:   0 | number of nan iterations:   0 |" in after


MEGATRONS_LINE = (
    " iteration        7/      10 | consumed samples:            8 |"
    " elapsed time per iteration (ms): 500.0 | throughput per GPU (TFLOP/s/GPU): 45.6 |"
    " learning rate: 1.000000E-04 | global batch size:     8 | lm loss: 3.000000E-01 |"
    " loss scale: 1.0 | grad norm: 1.000 | number of skipped iterations:   0 |"
    " number of nan iterations:   0 |"
)
"""What training_log of Megatron-LM (commit d98e8a6) prints for FIGURES with --log-throughput, after
the time of day."""


def test_a_log_file_has_megatrons_line_and_our_figures_after_it():
    [line] = lines_of(("step", FIGURES), log_throughput=True)
    assert re.fullmatch(r" \[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}\]", line[:29])
    assert line[29:] == MEGATRONS_LINE + " tokens/s: 12 | ETA: 1:02:03 | memory (GiB): 1.50 |"
    [line] = lines_of(("step", FIGURES | {"mfu": 0.4567}))
    assert "TFLOP/s" not in line
    assert line.endswith(" tokens/s: 12 | MFU: 45.7% | ETA: 1:02:03 | memory (GiB): 1.50 |")


def test_a_line_speaks_of_all_steps_since_the_last_one():
    slow = FIGURES | {"iteration": 9, "seconds": 1.5, "lm_loss": 0.5, "tokens_per_second": 4.0}
    last = FIGURES | {"iteration": 10, "lm_loss": 7.0}
    steps = [("step", figures) for figures in (FIGURES | {"iteration": 8}, slow, last)]
    lines = lines_of(*steps, interval=9)
    assert len(lines) == 2  # every ninth, and the last
    assert " elapsed time per iteration (ms): 1000.0 |" in lines[0]
    assert " lm loss: 4.000000E-01 |" in lines[0]
    assert " tokens/s: 6 |" in lines[0]
    assert " lm loss: 7.000000E+00 |" in lines[1]


def test_an_evaluation_is_said_in_megatrons_words():
    figures = {"iteration": 5, "validation_loss": 2.0, "validation_perplexity": 7.389}
    assert lines_of(("evaluation", figures)) == [
        " validation loss at iteration 5 | lm loss value: 2.000000E+00 | lm loss PPL: 7.389000E+00 |"
    ]


class Recorder(Sink):
    """Notes what it is told, in a list that it shares with others."""

    def __init__(self, name: str, calls: list):
        self.name, self.calls = name, calls

    def start(self) -> None:
        self.calls.append((self.name, "start"))

    def event(self, event: str, values: dict) -> None:
        self.calls.append((self.name, event, {k: v for k, v in values.items() if k != "time"}))

    def close(self) -> None:
        self.calls.append((self.name, "close"))


def test_every_sink_hears_of_every_event_and_is_closed_by_an_error():
    calls: list = []
    log = Log(None, True)
    log.add(Recorder("a", calls))
    log.add(Recorder("b", calls))
    with pytest.raises(KeyboardInterrupt), log:
        log.event("save", iteration=3)
        raise KeyboardInterrupt
    assert calls == [
        *(("a", "start"), ("b", "start")),
        *(("a", "save", {"iteration": 3}), ("b", "save", {"iteration": 3})),
        *(("b", "close"), ("a", "close")),  # what was started last ends first
    ]


def test_a_duration_is_written_as_a_person_reads_it():
    assert duration(59.6) == "0:01:00"
    assert duration(2 * 86400 + 5) == "2 days, 0:00:05"
