"""Fault points: what --fault asks for happens there, once, and elsewhere nothing does."""

import ast
import errno
import signal
import time

import pytest

from megatron_yuyuan import faults
from megatron_yuyuan.cli import ArgumentParser
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.faults import PLACES, Fault, arm, fault_point, parse_fault


def places_in(code: str) -> set[str]:
    """The literal names that a module gives to fault_point."""
    calls = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    named = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "fault_point"]
    return {ast.literal_eval(call.args[0]) for call in named}


def test_every_place_is_in_the_code_and_every_one_in_the_code_is_known(repository):
    files = (repository / "megatron_yuyuan").rglob("*.py")
    found = set().union(*(places_in(file.read_text(encoding="utf-8")) for file in files))
    assert found == set(PLACES)
    assert places_in("fault_point('a.b')") == {"a.b"} and not places_in("point('a.b')")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("save.renamed:kill", Fault("save.renamed", "kill")),
        ("save.renamed:kill@2", Fault("save.renamed", "kill", number=2)),
        ("files.synced:sleep=0.5", Fault("files.synced", "sleep", 0.5)),
        ("step.before_update:stop@5,rank=1", Fault("step.before_update", "stop", number=5, rank=1)),
        ("save.in_file:error,rank=0", Fault("save.in_file", "error", rank=0)),
    ],
)
def test_a_fault_is_read_from_its_text(text, fault):
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("save.renamd:kill", "no place is called save.renamd.*\n.*\n  try: save.renamed or "),
        ("%:kill", r"fault=%:kill is not PLACE:ACTION\[@N\]\[,rank=R\]"),
        ("save.renamed", "is not PLACE:ACTION"),
        ("save.renamed:kill@0", "is not PLACE:ACTION"),
        ("save.renamed:kill@2,rank=-1", "is not PLACE:ACTION"),
        ("save.renamed:die", "no action is called die\n.*\n  try: kill, stop, term, error, sleep="),
        ("save.renamed:sleep", "no action is called sleep\n"),
        ("save.renamed:kill=3", "no action is called kill=3\n"),
    ],
)
def test_what_would_not_happen_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_fault(text)


def armed(text: str, rank: int) -> list[int]:
    """On a rank of the pool: at which of five passes through two places an OSError came."""
    arm(text, rank)
    found = []
    for passed in range(1, 6):
        for place in ("save.made", "save.renamed"):
            try:
                fault_point(place)
            except OSError as error:
                assert (error.errno, place) == (errno.EIO, "save.renamed")
                found.append(passed)
    return found


def test_a_fault_happens_once_on_its_pass_and_rank(ranks):
    assert ranks.run(1, armed, "save.renamed:error@3", 0) == [3]
    assert ranks.run(1, armed, "save.renamed:error@3,rank=1", 1) == [3]
    assert ranks.run(1, armed, "save.renamed:error@3,rank=1", 0) == []


def acted() -> dict[str, list]:
    """Each action, its signals and its sleep only noted."""
    found: dict[str, list] = {"signals": [], "seconds": []}
    faults.os.kill = lambda pid, number: found["signals"].append(
        (pid == faults.os.getpid(), number)
    )
    time.sleep = found["seconds"].append
    for action in ("kill", "stop", "term"):
        Fault("save.made", action).happen()
    Fault("save.made", "sleep", 0.5).happen()
    return found


def test_the_actions(ranks):
    found = ranks.run(1, acted)
    signals = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
    assert found == {"signals": [(True, number) for number in signals], "seconds": [0.5]}


def test_flag_and_environment_arm_a_process_of_this_rank(monkeypatch):
    asked = []
    monkeypatch.setattr("megatron_yuyuan.cli.arm", lambda *given: asked.append(given))
    monkeypatch.setenv("RANK", "3")
    assert vars(ArgumentParser().parse_args([])) == {"debug": False}
    assert asked == []
    options = ArgumentParser().parse_args(["--fault", "save.made:kill"])
    assert vars(options) == {"debug": False}  # nothing else reads it
    monkeypatch.setenv("YUYUAN_FAULT", "save.made:stop")
    ArgumentParser().parse_args([])
    assert asked == [("save.made:kill", 3), ("save.made:stop", 3)]
