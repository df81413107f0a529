"""Where the time of a run went: every second has one cause, over kills and restarts too."""

import time

import pytest

from megatron_yuyuan import log as log_module
from megatron_yuyuan.goodput import CAUSES, Goodput, TimeSplit, process_begun
from megatron_yuyuan.log import Log, read_events, read_metrics


def event(name: str, at: float, **values) -> dict:
    return {"event": name, "time": at, "iteration": 0, **values}


def step(iteration: int, at: float, seconds: float, name: str = "step") -> dict:
    return event(name, at, iteration=iteration, seconds=seconds)


FIRST = [
    event("start", 1020.0, begun=1000.0),
    step(1, 1033.0, 10.0),  # 3 seconds of reading before it
    step(2, 1044.0, 10.0),
    event("evaluation", 1048.0, iteration=2, seconds=4.0),
    event("continuations", 1050.0, iteration=2, seconds=2.0),
    event("save", 1055.0, iteration=2, seconds=5.0, blocked_seconds=5.0),
    step(3, 1065.0, 10.0),
    step(4, 1075.0, 10.0, "skip"),
]
"""A start that was killed after its fourth step."""
SECOND = [
    event("start", 1110.0, iteration=2, begun=1105.0),
    event("restart", 1111.0, iteration=2),
    step(3, 1125.0, 12.0),
]


def seconds(*events: dict) -> dict[str, float]:
    """Causes that took any time."""
    return {cause: taken for cause, taken in TimeSplit(events).seconds.items() if taken}


def test_every_second_of_a_start_has_a_cause():
    assert seconds(*FIRST) == {
        "start_up": 23.0,
        "steps": 30.0,
        "skipped": 10.0,
        "evaluation": 6.0,
        "saving": 5.0,
        "other": 1.0,
    }
    assert TimeSplit(FIRST).total == 75.0
    assert TimeSplit(FIRST).goodput == 30 / 75


def test_a_restart_takes_steps_back_and_the_time_between_is_idle():
    found = seconds(*FIRST, *SECOND)
    assert (found["repeated"], found["idle"], found["steps"]) == (10.0, 30.0, 20.0 + 12.0)
    assert found["start_up"] == 23.0 + 8.0
    assert sum(found.values()) == 1125.0 - 1000.0
    assert found["skipped"] == 10.0


def test_a_checkpoint_in_the_background_is_counted_once():
    """Training waited 2 s before the step that ended at 1040; the save is told of after it."""
    told = event("save", 1040.0, seconds=9.0, blocked_seconds=2.0)
    found = seconds(event("start", 1000.0, begun=1000.0), step(1, 1010.0, 10.0),
                    step(2, 1040.0, 28.0), told)  # fmt: skip
    assert found == {"steps": 38.0, "saving": 2.0}


def test_lines_without_a_clock_and_clocks_that_go_back_do_no_harm():
    old = {"event": "step", "iteration": 1, "seconds": 5.0}
    assert TimeSplit([old]).total == 0.0
    assert TimeSplit([old]).goodput == 0.0
    later = event("start", 990.0, begun=980.0)  # on a machine whose clock is behind
    assert seconds(*FIRST, later)["start_up"] == 33.0
    assert "idle" not in seconds(*FIRST, later)


class Clock:
    """A clock that tests set."""

    now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(log_module, "time", clock)
    return clock


def one_start(directory, clock: Clock, begun: float, first: int) -> list[str]:
    """What is said by a run of two steps and an evaluation."""
    log, said = Log(directory, True), []
    log.line = said.append
    log.add(Goodput(log, read_events(directory / "metrics.jsonl") if log.has_history else ()))
    log.event("start", iteration=first, begun=begun)
    if first:
        log.event("restart", iteration=first)
    with log:
        for iteration in (first + 1, first + 2):
            clock.now += 10.0
            log.event("step", iteration=iteration, seconds=10.0)
        clock.now += 5.0
        log.event("evaluation", iteration=first + 2, seconds=5.0)
    return said


def test_a_run_says_it_live_and_at_its_end_over_all_its_starts(tmp_path, clock):
    [line] = one_start(tmp_path, clock, begun=1000.0, first=0)
    assert line == "goodput: 80.0% of 0:00:25; evaluation 20.0%"
    clock.now += 25.0
    [line] = one_start(tmp_path, clock, begun=clock.now - 5.0, first=1)
    assert line.startswith("goodput: 40.0% of 0:01:15; between two starts 26.7%, ")
    assert "steps that a restart took back 13.3%, evaluation 13.3%, starting up 6.7%" in line
    told = read_metrics(tmp_path / "metrics.jsonl", "goodput")[-1]
    assert (told["goodput"], told["wall_seconds"], told["iteration"]) == (0.4, 75.0, 3)
    assert told["seconds_by_cause"].keys() == CAUSES.keys()
    assert sum(told["seconds_by_cause"].values()) == told["wall_seconds"]
    assert TimeSplit(read_events(tmp_path / "metrics.jsonl")).goodput == 0.4


def test_a_run_that_lost_nothing_says_no_more():
    whole = TimeSplit([event("start", 1000.0, begun=1000.0), step(1, 1010.0, 10.0)])
    assert whole.describe() == "goodput: 100.0% of 0:00:10"


def test_a_process_knows_when_it_began():
    assert 0 < time.time() - process_begun() < 86400
    assert abs(process_begun() - process_begun()) < 1.0
