"""Runs that are killed go on as if nothing had happened: rows T01, T05 and T16, at points that are drawn.

Here are a few of each kind; `slow` and tools/benchmark/survival.py have more. Kills at every step on the disk of
preprocessing and of exports are in tests/data/test_preprocess.py and tests/checkpoint/test_export_killed.py.
"""

from functools import cache

import pytest
from faults.kills import (
    EVALUATES,
    LAYOUTS,
    SAVES,
    STEPS,
    NotSurvived,
    Outcome,
    Point,
    Trials,
    drawn,
    require_equal,
    terms,
)
from faults.kills_of_files import FileTrials, exporting, merging, preprocessing
from faults.launched import moments, rank_killed, torchrun_killed
from faults.recovery import FIRST_STEP, NAMED, reactions

from megatron_yuyuan.faults import PLACES

IN_SAVES, IN_STEPS = ("save", "retention"), ("step",)


@pytest.fixture(scope="module")
def trials(prepared, tmp_path_factory):
    """trials(layout, flags): the trials of a command, whose undisturbed run is taken once."""
    return cache(
        lambda layout, flags: Trials(layout, flags, prepared, tmp_path_factory.mktemp("trials"))
    )


def require_survived(outcomes: list[Outcome], most_lost: int) -> None:
    """Each of the trials is survived, and no more steps are taken again than so many."""
    assert not [outcome.fault for outcome in outcomes if outcome.fault]
    assert max(outcome.lost for outcome in outcomes) <= most_lost


@pytest.mark.parametrize(
    ("layout", "flags", "rooms", "most_lost"),
    [
        ("data 2", SAVES, IN_SAVES, 2),
        ("pipeline 2", (*SAVES, "--async-save"), IN_SAVES, 4),
        ("pipeline 2", STEPS, IN_STEPS, 5),
    ],
    ids=["save", "async_save", "step"],
)
def test_a_kill_is_survived_to_the_last_bit(trials, layout, flags, rooms, most_lost):
    of = trials(layout, flags)
    require_survived([of.outcome(point) for point in drawn(of.passes, rooms, 3)], most_lost)


def test_sigterm_is_survived_and_costs_no_step(trials):
    of = trials("data 2", EVALUATES)
    require_survived([of.outcome(point) for point in list(terms(of.passes))[3:]], most_lost=0)


def test_an_older_checkpoint_of_the_same_iteration_makes_way(trials):
    """Killed before the tracker names iteration 4, the run saves it again; and is killed then."""
    again = Point("save.renamed", 0, 2), Point("save.moved_aside", 0, 1)
    assert trials("data 2", SAVES).outcome(*again).fault == ""


def test_trials_can_fail(trials):
    of = trials("data 2", SAVES)
    assert sorted(of.expected) == list(range(9))
    assert len(set.union(*of.expected.values())) == 9  # no two iterations are alike
    never = of.outcome(Point("save.renamed", 0, 99))
    assert never.fault.startswith("save.renamed:kill@99,rank=0: it did not happen: (0, 0)")
    with pytest.raises(NotSurvived, match="iteration 8 has the digest"):
        require_equal(of.expected, of.expected | {8: {"another"}})
    with pytest.raises(NotSurvived, match="iteration 9 has the digest None"):
        require_equal(of.expected, of.expected | {9: {"another"}})
    known = {place for place in PLACES if place.split(".")[0] in (*IN_SAVES, *IN_STEPS)}
    assert known - {point.place for point in of.passes} == {"save.moved_aside"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("flags", "rooms", "most_lost"),
    [(SAVES, IN_SAVES, 2), ((*SAVES, "--async-save"), IN_SAVES, 4), (STEPS, IN_STEPS, 5)],
    ids=["save", "async_save", "step"],
)
def test_many_kills_are_survived(trials, layout, flags, rooms, most_lost):
    of = trials(layout, flags)
    require_survived([of.outcome(point) for point in drawn(of.passes, rooms, 20)], most_lost)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_launchers_and_ranks_are_survived(trials, tmp_path, layout):
    of = trials(layout, STEPS)
    first, second, third = moments(3, max(of.expected))
    outcomes = [torchrun_killed(of, tmp_path / "run", first)]
    outcomes += [rank_killed(of, tmp_path / "run", a, r) for r, a in ((0, second), (1, third))]
    require_survived(outcomes, most_lost=5)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["preprocessing", "merging", "export"])
def test_killed_makers_of_files_make_the_same_bytes(prepared, tmp_path, what):
    making = {
        "preprocessing": lambda: preprocessing(prepared, tmp_path / "text.jsonl"),
        "merging": lambda: merging(prepared, tmp_path / "text.jsonl"),
        "export": lambda: exporting(tmp_path / "run"),
    }[what]()
    of = FileTrials(making, tmp_path)
    points = drawn(of.passes, ("scan", "merge", "files", "convert"), 6)
    assert len(points) == 6
    require_survived([of.outcome(point) for point in points], most_lost=0)


@pytest.mark.slow
def test_a_job_reacts_within_half_a_minute_in_the_right_order(trials, tmp_path):
    """tools/benchmark/recovery.py has the times; here they are bounds."""
    of = trials("data 2", STEPS)
    taken = dict(reactions(of, tmp_path / "launched", 1))
    assert taken[NAMED] < taken[FIRST_STEP]
    assert max(taken.values()) < 30
