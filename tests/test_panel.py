"""The panel: on a terminal it stays below the lines, however the run ends; elsewhere there is none."""

import os
import pty
import signal
import subprocess
import sys

import pytest
from test_log import FIGURES

PROGRAM = """
import sys, time
from megatron_yuyuan.log import Log, MegatronLines
from megatron_yuyuan.panel import Panel, on_terminal
log = Log(None, True)
log.add(Panel(log.line, 10) if on_terminal() else MegatronLines(log.line, 1, 10))
print("before the first step")
with log:
    log.event("step", **FIGURES | {"mfu": 0.4567})
    log.event("evaluation", iteration=7, validation_loss=2.5, validation_perplexity=12.18)
    log.event("save", iteration=7, path="runs/[red]/iter_0000007")
    log.event("goodput", iteration=7, goodput=0.8125, wall_seconds=7200.0)
    print("a line of somebody else")
    ENDING
print("after the last step")
"""
SWITCHES = {"NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"}
ORDINARY = {name: value for name, value in os.environ.items() if name not in SWITCHES} | {
    "TERM": "xterm",
    "COLUMNS": "100",
    "LINES": "30",
    "PYTHON_COLORS": "0",
}
"""An environment that leaves it to the terminal, but for the colours of Python 3.13's own tracebacks."""
HIDE_CURSOR, SHOW_CURSOR, ESCAPE = "\x1b[?25l", "\x1b[?25h", "\x1b"


def program(ending: str) -> list[str]:
    code = PROGRAM.replace("FIGURES", repr(FIGURES)).replace("ENDING", ending)
    return [sys.executable, "-c", code]


def on_a_terminal(ending: str = "pass", interrupt: bool = False, **environment: str):
    """(exit status, everything written) of the program on a pseudo-terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        program(ending), stdout=theirs, stderr=theirs, env=ORDINARY | environment
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            written += os.read(ours, 65536)
        except OSError:  # so Linux says that nobody writes any more
            break
        if interrupt and b"a line of somebody else" in written:
            process.send_signal(signal.SIGINT)
            interrupt = False
    os.close(ours)
    return process.wait(), written.decode()


def test_the_panel_shows_the_last_step_and_the_lines_scroll_above_it():
    status, written = on_a_terminal()
    assert status == 0
    [_, shown] = written.rsplit("a line of somebody else", 1)
    last = shown[shown.index("╭") : shown.index("after the last step")]
    for words in (
        *("iteration 7 of 10", "ETA 1:02:03", "0.3000", "12 ", "45.6 TFLOP/s a device, MFU 45.7%"),
        *("1.000e-04", "1.50 GiB", "2.5000 at 7", "runs/[red]/iter_0000007", "81.2% of 2:00:00"),
    ):
        assert words in last
    assert " validation loss at iteration 7 | lm loss value: 2.5" in written
    assert "consumed samples" not in written  # a log file's line
    assert written.index("before the first step") < written.index(HIDE_CURSOR)
    assert written.index(SHOW_CURSOR) < written.index("after the last step")


@pytest.mark.parametrize(
    ("ending", "interrupt", "last"),
    [
        ("raise ValueError('a bug')", False, "ValueError: a bug"),
        ("time.sleep(60)", True, "KeyboardInterrupt"),
    ],
)
def test_a_run_that_is_broken_off_leaves_the_terminal_as_it_was(ending, interrupt, last):
    status, written = on_a_terminal(ending, interrupt)
    assert status != 0
    assert HIDE_CURSOR in written
    assert written.count(SHOW_CURSOR) == 1
    shown = written.index(SHOW_CURSOR)
    assert shown < written.index("Traceback") < written.rindex(last)
    assert ESCAPE not in written[shown + len(SHOW_CURSOR) :]


@pytest.mark.parametrize(
    ("term", "more"),
    [("xterm", "log.event('save', path='y', iteration=8)"), ("dumb", "log.line('x')")],
)
def test_a_terminal_that_is_closed_does_not_end_the_run(term, more):
    ours, theirs = pty.openpty()
    command, environment = program(f"time.sleep(1); {more}"), ORDINARY | {"TERM": term}
    process = subprocess.Popen(
        command, stdout=theirs, stderr=subprocess.PIPE, text=True, env=environment
    )
    os.close(theirs)
    written = b""
    while b"\n" not in written.partition(b"a line of somebody else")[2]:  # print ends it apart
        written += os.read(ours, 65536)
    os.close(ours)
    assert process.communicate()[1] == ""
    assert process.returncode == 0


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TTY_INTERACTIVE": "0"}], ids=str)
def test_a_terminal_may_be_treated_as_a_log_file(environment):
    status, written = on_a_terminal(**environment)
    assert status == 0
    assert ESCAPE not in written
    assert " iteration        7/      10 | consumed samples:            8 |" in written


def test_no_colour_is_a_panel_without_colours():
    _, coloured = on_a_terminal()
    _, plain = on_a_terminal(NO_COLOR="1")
    assert "\x1b[38;" in coloured or "\x1b[9" in coloured
    assert "\x1b[38;" not in plain
    assert "\x1b[9" not in plain
    assert "iteration 7 of 10" in plain


def test_a_log_file_has_lines_and_no_escape_codes():
    forced = os.environ | {"FORCE_COLOR": "1"}
    ended = subprocess.run(program("pass"), capture_output=True, text=True, check=True, env=forced)
    assert ESCAPE not in ended.stdout + ended.stderr
    assert " iteration        7/      10 | consumed samples:            8 |" in ended.stdout
