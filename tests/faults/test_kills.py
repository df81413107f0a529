"""Runs that are killed go on as if nothing had happened: rows T01, T05 and T16, at points that are drawn.

Here are a few of each kind; `slow` and tools/benchmark/survival.py take them all. Kills of preprocessing and
of exports at every step on the disk are tested beside these.
"""

import pytest
from faults.kills import (
    EVALUATES,
    LAYOUTS,
    SAVES,
    STEPS,
    NotSurvived,
    Point,
    Trials,
    drawn,
    require_equal,
    terms,
)

from megatron_yuyuan.faults import PLACES

IN_SAVES, IN_STEPS = ("save", "retention"), ("step",)


def survived(trials: Trials, points, most_lost: int) -> None:
    """Each of the points is survived, and no more steps are taken again than so many."""
    outcomes = [trials.outcome(point) for point in points]
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
def test_a_kill_is_survived_to_the_last_bit(prepared, tmp_path, layout, flags, rooms, most_lost):
    trials = Trials(layout, flags, prepared, tmp_path)
    survived(trials, drawn(trials.passes, rooms, 3), most_lost)


def test_sigterm_is_survived_and_costs_no_step(prepared, tmp_path):
    trials = Trials("data 2", EVALUATES, prepared, tmp_path)
    survived(trials, list(terms(trials.passes))[1::2], most_lost=0)


def test_an_older_checkpoint_of_the_same_iteration_makes_way(prepared, tmp_path):
    """Killed before the tracker names iteration 4, the run saves it again; and is killed then."""
    trials = Trials("data 2", SAVES, prepared, tmp_path)
    again = Point("save.renamed", 0, 2), Point("save.moved_aside", 0, 1)
    assert trials.outcome(*again).fault == ""


def test_trials_can_fail(prepared, tmp_path):
    trials = Trials("data 2", SAVES, prepared, tmp_path)
    assert sorted(trials.expected) == list(range(9))
    assert len(set.union(*trials.expected.values())) == 9  # no two iterations are alike
    never = trials.outcome(Point("save.renamed", 0, 99))
    assert never.fault.startswith("save.renamed:kill@99,rank=0: it did not happen: (0, 0)")
    other = trials.expected | {8: {"another"}}
    with pytest.raises(NotSurvived, match="iteration 8 has the digest"):
        require_equal(trials.expected, other)
    passed = {point.place for point in trials.passes}
    assert passed >= {
        place for place in PLACES if place.startswith(("save", "step", "retention"))
    } - {"save.moved_aside"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("flags", "rooms", "number", "most_lost"),
    [
        (SAVES, IN_SAVES, 25, 2),
        ((*SAVES, "--async-save"), IN_SAVES, 25, 4),
        (STEPS, IN_STEPS, 50, 5),
    ],
    ids=["save", "async_save", "step"],
)
def test_every_kill_is_survived(prepared, tmp_path, layout, flags, rooms, number, most_lost):
    trials = Trials(layout, flags, prepared, tmp_path)
    survived(trials, drawn(trials.passes, rooms, number), most_lost)
