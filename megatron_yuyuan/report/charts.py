"""Lines over an axis, and a divided bar, as SVG and HTML without a script.

The curves are an SVG that stretches with the page; ticks, labels and the values that appear under the
pointer are HTML beside it, so that text keeps its size on a phone. A curve of more points than the
screen has room for is drawn as the mean of each stretch in a band from its least to its greatest.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from megatron_yuyuan.report.markup import Html, element

STRETCHES = 160
"""Of an axis of x: the finest that is drawn, and that answers to the pointer."""
SIDE = 1000
"""Units of the stretched SVG, each way."""


@dataclass(frozen=True)
class Axis:
    """What is counted along it, with its unit, and how a value is written."""

    label: str
    show: Callable[[float], str]
    from_zero: bool = False


@dataclass(frozen=True)
class Line:
    """A curve. `color` is a class of the style sheet: c1 to c8."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    dots: bool = False
    """Mark every point: there are few, and the line between them is only a guide."""


@dataclass(frozen=True)
class Mark:
    """Something that happened at a place of x. `kind` is a class of the style sheet."""

    x: float
    kind: str
    label: str


@dataclass(frozen=True)
class Stretch:
    """The points of a line within one stretch of x."""

    x: float
    mean: float
    least: float
    greatest: float


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def reduced(points: Sequence[tuple[float, float]], low: float, high: float) -> list[Stretch]:
    """The points of at most STRETCHES stretches of [low, high], in order."""
    if len(points) <= STRETCHES:
        return [Stretch(x, y, y, y) for x, y in points]
    width = (high - low) / STRETCHES or 1.0
    held: dict[int, list[tuple[float, float]]] = {}
    for x, y in points:
        held.setdefault(min(STRETCHES - 1, int((x - low) / width)), []).append((x, y))
    return [
        Stretch(fmean(x for x, _ in of), fmean(ys := [y for _, y in of]), min(ys), max(ys))
        for of in held.values()
    ]


class Scale:
    """Values of an axis -> shares of its length."""

    def __init__(self, values: Sequence[float], from_zero: bool = False, room: float = 0.0):
        low, high = min(values), max(values)
        low = min(low, 0.0) if from_zero else low
        margin = (high - low) * room or abs(high) * room
        self.low, self.high = low if from_zero else low - margin, high + margin

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5

    def percent(self, value: float) -> str:
        return f"{100 * self.share(value):.2f}%"


def line_chart(
    title: str, lines: Sequence[Line], x_axis: Axis, y_axis: Axis, marks: Sequence[Mark] = ()
) -> Html:
    """Lines that share their axes, and what happened on the way. Lines without points are left out;
    without any there is no chart, and a note says so."""
    lines = [line for line in lines if line.points]
    if not lines:
        return element("p", f"{title}: nothing was recorded.", class_="note")
    xs = [x for line in lines for x, _ in line.points] + [mark.x for mark in marks]
    x_scale = Scale(xs)
    y_scale = Scale([y for line in lines for _, y in line.points], y_axis.from_zero, room=0.06)
    drawn = [(line, reduced(line.points, x_scale.low, x_scale.high)) for line in lines]
    y_ticks, x_ticks = ticks(y_scale.low, y_scale.high), ticks(x_scale.low, x_scale.high)
    picture = element(
        "svg",
        *(_grid_line(y_scale.share(tick)) for tick in y_ticks),
        *(_mark(mark, x_scale) for mark in marks),
        *(part for line, stretches in drawn for part in _curve(line, stretches, x_scale, y_scale)),
        viewBox=f"0 0 {SIDE} {SIDE}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}: {y_axis.label} over {x_axis.label}",
    )
    answers = _answers(drawn, marks, x_scale, x_axis, y_axis)
    plot = element(
        "div",
        element("div", *(_tick(y_scale, t, y_axis, "bottom") for t in y_ticks), class_="y-ticks"),
        element("div", picture, answers, class_="area"),
        element("div", *(_tick(x_scale, t, x_axis, "left") for t in x_ticks), class_="x-ticks"),
        class_="plot",
    )
    caption = element("figcaption", element("strong", title), _legend(lines, marks))
    return element(
        "figure",
        caption,
        element("p", y_axis.label, class_="axis") if y_axis.label != title.lower() else None,
        plot,
        element("p", x_axis.label, class_="axis below"),
        class_="chart",
    )


def _tick(scale: Scale, value: float, axis: Axis, edge: str) -> Html:
    return element("span", axis.show(value), style=f"{edge}: {scale.percent(value)}")


def _place(x: float, y: float) -> str:
    """Shares -> coordinates; SVG counts y downwards."""
    return f"{SIDE * x:.1f},{SIDE * (1 - y):.1f}"


def _grid_line(share: float) -> Html:
    return element("path", d=f"M{_place(0, share)} H{SIDE}", class_="grid")


def _mark(mark: Mark, x_scale: Scale) -> Html:
    """A restart or a stop is a line from top to bottom, a save a tick at the bottom, the rest a dot at
    the top (a line of no length with round ends, which the stretching leaves round)."""
    x = x_scale.share(mark.x)
    ways = {"restart": f"V{SIDE}", "stop": f"V{SIDE}", "save": "v-40"}
    start = _place(x, 0.0 if mark.kind == "save" else 0.97 if mark.kind not in ways else 1.0)
    return element("path", d=f"M{start} {ways.get(mark.kind, 'h0')}", class_=f"mark {mark.kind}")


def _curve(line: Line, stretches: list[Stretch], x_scale: Scale, y_scale: Scale) -> list[Html]:
    def places(height: Callable[[Stretch], float], of: list[Stretch]) -> str:
        return " ".join(_place(x_scale.share(s.x), y_scale.share(height(s))) for s in of)

    parts = []
    if any(s.greatest > s.least for s in stretches):
        edge = f"{places(lambda s: s.greatest, stretches)} {places(lambda s: s.least, stretches[::-1])}"
        parts.append(element("polygon", points=edge, class_=f"band {line.color}"))
    parts.append(
        element("polyline", points=places(lambda s: s.mean, stretches), class_=f"line {line.color}")
    )
    if line.dots or len(stretches) == 1:
        dots = (_place(x_scale.share(s.x), y_scale.share(s.mean)) for s in stretches)
        path = " ".join(f"M{dot} h0" for dot in dots)
        parts.append(element("path", d=path, class_=f"dots {line.color}"))
    return parts


def _answers(drawn, marks: Sequence[Mark], x_scale: Scale, x_axis: Axis, y_axis: Axis) -> Html:
    """What the page says where the pointer is: one element for every place that has a value."""
    places = sorted({stretch.x for _, stretches in drawn for stretch in stretches})
    places = places[:: math.ceil(len(places) / STRETCHES)]
    middles = [(a + b) / 2 for a, b in pairwise(places)]
    answers = []
    for x, low, high in zip(places, [-math.inf, *middles], [*middles, math.inf], strict=True):
        said = [element("b", f"{x_axis.label} {x_axis.show(x)}")]
        for line, stretches in drawn:
            if near := [s.mean for s in stretches if low < s.x <= high]:
                value = f"{line.name}: {y_axis.show(fmean(near))}"
                said.append(element("i", value, class_=line.color))
        said += [element("i", mark.label) for mark in marks if low < mark.x <= high][:3]
        left, right = (100 * min(1.0, max(0.0, x_scale.share(end))) for end in (low, high))
        tip = element("span", *said, class_="late" if x_scale.share(x) > 0.55 else None)
        answers.append(element("div", tip, style=f"left: {left:.2f}%; width: {right - left:.2f}%"))
    return element("div", *answers, class_="answers")


def _legend(lines: Sequence[Line], marks: Sequence[Mark]) -> Html | None:
    names = {"restart": "restart", "stop": "stop", "save": "checkpoint", "skip": "step passed over",
             "spike": "loss spike", "trouble": "trouble"}  # fmt: skip
    colors = {line.name: line.color for line in lines}
    keys = [element("span", name, class_=f"key {color}") for name, color in colors.items()]
    kinds = {mark.kind for mark in marks}
    keys += [
        element("span", said, class_=f"key mark-{kind}")
        for kind, said in names.items()
        if kind in kinds
    ]
    return element("span", *keys, class_="legend") if len(keys) > 1 else None


def divided_bar(parts: Sequence[tuple[str, float, str]]) -> Html:
    """(name, share, color) of each part, in order, as one bar."""
    shown = [
        element(
            "div", title=f"{name}: {share:.1%}", class_=color, style=f"width: {100 * share:.2f}%"
        )
        for name, share, color in parts
        if share > 0
    ]
    label = ", ".join(f"{name} {share:.1%}" for name, share, _ in parts if share > 0)
    return element("div", *shown, class_="bar", role="img", aria_label=label)
