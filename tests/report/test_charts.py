"""Axes with round numbers, curves that keep their extremes, and bars that add up."""

import re

import pytest

from megatron_yuyuan.report.charts import (
    STRETCHES,
    Axis,
    Line,
    Mark,
    Scale,
    divided_bar,
    line_chart,
    reduced,
    ticks,
)

STEP, VALUE = Axis("step", lambda x: f"{x:g}"), Axis("value", lambda y: f"{y:g}")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 100.0, [0, 20, 40, 60, 80, 100]),
        (2.1, 6.9, [3, 4, 5, 6]),
        (0.0, 0.002, [0, 0.0005, 0.001, 0.0015, 0.002]),
        (-3.0, 4.0, [-2, 0, 2, 4]),
        (7.0, 7.0, [7.0]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_a_long_curve_keeps_its_mean_and_its_extremes():
    points = [(float(x), 100.0 if x == 5000 else 1.0) for x in range(10_000)]
    stretches = reduced(points, 0.0, 9999.0)
    assert len(stretches) == STRETCHES
    assert max(s.greatest for s in stretches) == 100.0
    assert [s.greatest for s in stretches].count(100.0) == 1
    [spiked] = [s for s in stretches if s.greatest == 100.0]
    assert spiked.least == 1.0 and 1.0 < spiked.mean < 3.0
    assert reduced(points[:3], 0.0, 2.0)[1].x == 1.0


def test_a_curve_is_drawn_where_its_values_are():
    line = Line("loss", [(0.0, 1.0), (10.0, 3.0)], "c1")
    drawn = line_chart("Loss", [line, Line("absent", [], "c2")], STEP, VALUE)
    [places] = re.findall(r'<polyline points="([^"]*)" class="line c1"', drawn)
    (x0, y0), (x1, y1) = (map(float, place.split(",")) for place in places.split())
    assert (x0, x1) == (0.0, 1000.0)
    assert y0 > y1  # SVG counts downwards
    assert "absent" not in drawn
    for value in ("step 0", "loss: 1", "step 10", "loss: 3"):
        assert value in drawn


def test_what_happened_is_drawn_and_said_where_it_happened():
    marks = [Mark(5.0, "restart", "restart from 5"), Mark(10.0, "save", "checkpoint")]
    line = Line("loss", [(0.0, 1.0), (4.0, 2.0), (10.0, 3.0)], "c1")
    drawn = line_chart("Loss", [line], STEP, VALUE, marks)
    assert 'd="M500.0,0.0 V1000" class="mark restart"' in drawn
    assert '<b>step 4</b><i class="c1">loss: 2</i><i>restart from 5</i>' in drawn
    assert drawn.count("mark-restart") == drawn.count("mark-save") == 1
    assert "mark-stop" not in drawn


def test_a_chart_of_nothing_says_so():
    assert line_chart("Loss", [Line("loss", [], "c1")], STEP, VALUE) == (
        '<p class="note">Loss: nothing was recorded.</p>'
    )


def test_a_single_value_is_drawn_in_the_middle():
    assert Scale([3.0]).share(3.0) == 0.5
    assert 'class="dots c1"' in line_chart("Loss", [Line("loss", [(1.0, 0.0)], "c1")], STEP, VALUE)


def test_a_bar_shows_every_part_that_there_is():
    bar = divided_bar([("steps", 0.75, "c1"), ("<b>", 0.25, "c2"), ("none", 0.0, "c3")])
    assert re.findall(r"width: ([\d.]+)%", bar) == ["75.00", "25.00"]
    assert "&lt;b&gt; 25.0%" in bar and "none" not in bar
