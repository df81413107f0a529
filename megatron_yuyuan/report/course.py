"""Where the time of a run went, and what happened on the way."""

from datetime import datetime

from megatron_yuyuan.goodput import CAUSES
from megatron_yuyuan.log import duration
from megatron_yuyuan.report.charts import Axis, Line, Mark, divided_bar, line_chart
from megatron_yuyuan.report.learning import processes, spikes
from megatron_yuyuan.report.markup import Html, element, joined, table
from megatron_yuyuan.report.record import Run

COLORS = {
    "steps": "c1",
    "skipped": "c6",
    "repeated": "c2",
    "evaluation": "c3",
    "saving": "c4",
    "start_up": "c5",
    "idle": "c7",
    "other": "c8",
}
"""Cause -> color."""
MEANINGS = {
    "steps": "The model learned, and what it learned was kept.",
    "skipped": "The gradient could not be used; the samples were read for nothing.",
    "repeated": "Steps after the last checkpoint before an end: they were taken again.",
    "evaluation": "The validation loss, and the texts above.",
    "saving": "Training stood still while checkpoints were written or copied.",
    "start_up": "Loading the program, the data and the checkpoint, up to the first step.",
    "idle": "From the last sign of one start to the next: waiting for a place, and what a kill broke off.",
    "other": "Agreement among the processes, writing the log, traces.",
}
"""Cause -> what a reader is told."""
UNITS = [(86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds")]
"""Seconds in a unit of the axis of time, and its name."""
EVENTS_SHOWN = 12
"""Events that stand open; all of them can be unfolded."""


def time_by_cause(run: Run) -> Html | None:
    """The goodput bar and its table; None of a run whose log has no clock."""
    split = run.time_split
    if not split.total:
        return None
    shares = {cause: max(0.0, seconds / split.total) for cause, seconds in split.seconds.items()}
    rows = [
        element(
            "li",
            element("span", CAUSES[cause], class_=f"key {COLORS[cause]}"),
            element("b", f"{share:.1%}"),
            element("span", duration(split.seconds[cause]), class_="when"),
            element("p", MEANINGS[cause]),
        )
        for cause, share in sorted(shares.items(), key=lambda item: -item[1])
        if share >= 5e-4
    ]
    bar = divided_bar([(CAUSES[cause], share, COLORS[cause]) for cause, share in shares.items()])
    return joined(bar, element("ul", *rows, class_="causes"))


def course(run: Run) -> Html | None:
    """Steps over the hours, with what happened, and a list of it."""
    starts, timed = run.all("start"), [e for e in run.events if "time" in e]
    if not starts:
        return None
    begun = starts[0]["begun"]
    unit, name = max((s for s in UNITS if timed[-1]["time"] - begun >= s[0]), default=UNITS[-1])
    progress: list[list[tuple[float, float]]] = []  # of each start: steps are lost between two
    for event in timed:
        if event["event"] == "start":
            progress.append([((event["begun"] - begun) / unit, event["iteration"])])
        if progress and event["event"] in ("start", "step", "skip"):
            progress[-1].append(((event["time"] - begun) / unit, event["iteration"]))
    lines = [Line("steps taken", points, "c1") for points in progress]
    happened = _happened(run)
    marks = [Mark((at - begun) / unit, kind, what) for at, kind, what in happened if at >= begun]
    axis = Axis(f"{name} since the first start", lambda x: f"{x:.4g}")
    steps = Axis("steps taken", lambda y: f"{y:,.0f}", from_zero=True)
    chart = line_chart("Course of the run", lines, axis, steps, marks)
    rows = [(_clock(at), what) for at, _, what in happened if what]
    return joined(chart, _listed(rows))


def _happened(run: Run) -> list[tuple[float, str, str]]:
    """(Unix time, kind of mark, what happened), in order."""
    told = {
        "restart": lambda e: f"Goes on from step {e['iteration']:,}",
        "stop": lambda e: f"Stopped after step {e['iteration']:,}: {e['cause']}",
        "save": lambda e: (
            f"Checkpoint of step {e['iteration']:,}, waited {e.get('blocked_seconds', 0.0):.1f} s"
        ),
        "save_failed": lambda e: f"Checkpoint of step {e['iteration']:,} failed: {e['cause']}",
        "skip": lambda e: f"Step {e['iteration']:,} passed over: {e['reason']}",
        "rollback": lambda e: (
            f"A loss spike was taken back to step {e['iteration']:,}: samples {e['left_out'][0]:,} to "
            f"{e['left_out'][1]:,} are left out"
        ),
        "straggler": lambda e: (
            f"Rank {e['rank']} ({e['host']}) takes {e['slower']:.1f} times as long as the median"
        ),
        "start": lambda e: (
            f"Start, {processes(e['ranks'])}: {e['layout']}"
            f"{'; the one before ended: ' + e['after'] if e.get('after') else ''}"
        ),
    }
    kinds = {"save_failed": "trouble", "straggler": "trouble", "rollback": "spike"}
    found = [
        (e["time"], kinds.get(e["event"], e["event"]), told[e["event"]](e))
        for e in run.events
        if e["event"] in told and "time" in e
    ]
    spiked = set(spikes(run.standing("step")))
    found += [
        (step["time"], "spike", f"Loss spike at step {step['iteration']:,}: {step['lm_loss']:.3f}")
        for step in run.standing("step")
        if step["iteration"] in spiked and "time" in step
    ]
    return sorted(found)


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at):%d %b %H:%M:%S}"


def _listed(rows: list[tuple[str, str]]) -> Html:
    """The last events, and all of them to unfold."""
    shown = table(("when", "what"), rows[-EVENTS_SHOWN:], class_="events")
    if len(rows) <= EVENTS_SHOWN:
        return shown
    summary = element("summary", f"all {len(rows)} events")
    return joined(
        shown, element("details", summary, table(("when", "what"), rows, class_="events"))
    )
