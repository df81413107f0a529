"""What a run learned: in a sentence, in figures, in texts, in curves."""

from collections.abc import Sequence
from statistics import median

import numpy as np

from megatron_yuyuan.log import duration
from megatron_yuyuan.report.charts import Axis, Line, Mark, line_chart
from megatron_yuyuan.report.markup import Html, element, joined
from megatron_yuyuan.report.record import Run
from megatron_yuyuan.train.spikes import SIGMAS, WINDOW, is_spike

ENDINGS = {
    "done": "It took all its steps.",
    "signal": "It was stopped by {cause} with its state saved, and can go on.",
    "interval": "It stopped as it was told ({cause}), with its state saved, and can go on.",
    "duration": "It stopped as it was told ({cause}), with its state saved, and can go on.",
    "rank_lost": "It lost a process: {cause}. It can go on from its last checkpoint.",
}
"""Class of exit.json -> what a reader is told."""
TEXTS_SHOWN, TEXTS_FOLDED = 4, 60
"""Evaluations whose texts stand open, and how many can be unfolded."""
NO_MFU = (
    "The share of what the devices could compute (MFU) is not known: no peak is published for such a "
    "processor, or it is not in the table of train/throughput.py."
)
STEP = Axis("optimizer step", lambda x: f"{x:,.0f}")
LOSS = Axis("loss (nats a token)", lambda y: f"{y:.3g}")


def summary(run: Run) -> Html:
    """What this is, how it ended, and the figures that a person asks for first."""
    tiles = element("dl", *(_tile(*tile) for tile in _figures(run)), class_="tiles")
    return joined(element("p", _in_a_sentence(run), class_="lead"), tiles)


def _in_a_sentence(run: Run) -> str:
    model, data, last = run.config.model, run.config.data, _steps(run)[-1]
    tokens = last["consumed_samples"] * data.seq_length
    what = "answer questions" if _asks(run) else "continue texts"
    return (
        f"A language model of {_size(model.num_parameters)} parameters learned to {what}: it has read "
        f"{_size(tokens)} tokens (pieces of words) in {last['iteration']:,} steps. {_ending(run)}"
    )


def _asks(run: Run) -> bool:
    """Whether the run learned questions. Older runs do not say so themselves: questions have their own
    shards, and such a run began with weights."""
    from_weights = run.config.checkpoint.finetune and not run.config.data.data_path
    starts = run.all("start")
    return any(s.get("questions", from_weights) for s in starts) if starts else from_weights


def _ending(run: Run) -> str:
    if run.ending is None:
        return "No end is recorded: it is under way, or was killed."
    if run.ending.get("refused"):
        return f"A start after that was refused before its first step: {run.ending['cause']}."
    known = ENDINGS.get(str(run.ending["class"]), "It ended with an error: {cause}.")
    return known.replace("{cause}", str(run.ending["cause"]))


def _size(number: float) -> str:
    """`6.9 million`."""
    for unit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:,.0f}"


def _steps(run: Run) -> list[dict]:
    """Steps that stand, those passed over too, in order."""
    both = run.standing("step") + run.standing("skip")
    return sorted(both, key=lambda step: step["iteration"])


def _evaluations(run: Run) -> list[dict]:
    """Those whose loss was a finite number."""
    return [e for e in run.standing("evaluation") if e["validation_loss"] is not None]


def _figures(run: Run) -> list[tuple[str, str, str]]:
    """(name, value, what stands under it) of each tile."""
    steps, evaluations, model = _steps(run), _evaluations(run), run.config.model
    planned, last, split = run.config.training.train_iters, steps[-1]["iteration"], run.time_split
    speed = median(step["tokens_per_second"] for step in steps)
    use = [step["mfu"] for step in steps if step.get("mfu")]
    ranks = next((start["ranks"] for start in reversed(run.all("start"))), None)
    on = f"on {processes(ranks)}" if ranks else "over all processes"
    figures = [("Progress", f"{last:,}", f"of {planned:,} steps" if planned else "steps")]
    if evaluations:
        first, latest = evaluations[0], evaluations[-1]
        under = f"at step {first['iteration']:,}"
        if len(evaluations) > 1:
            under = f"from {first['validation_loss']:.2f} {under}"
        figures.append(("Validation loss", f"{latest['validation_loss']:.3f}", under))
        under = "tokens it hesitates between, on text it never learned"
        figures.append(("Perplexity", f"{latest['validation_perplexity']:,.1f}", under))
    figures.append(("Speed", f"{speed:,.0f}", f"tokens a second, {on}"))
    if use:
        figures.append(("MFU", f"{median(use):.1%}", "of what the devices could compute"))
    if split.total:
        under = f"of {duration(split.total)} went to steps that count"
        figures.append(("Goodput", f"{split.goodput:.1%}", under))
    under = f"parameters: {model.num_layers} layers, width {model.hidden_size:,}"
    return [*figures, ("Model", _size(model.num_parameters), under)]


def processes(ranks: int) -> str:
    """`1 process`, `32 processes`."""
    return f"{ranks:,} process{'es' if ranks != 1 else ''}"


def _tile(name: str, value: str, under: str) -> Html:
    parts = element("dt", name), element("dd", value, class_="value"), element("dd", under)
    return element("div", *parts)


def marks_by_step(run: Run) -> list[Mark]:
    """What happened, at its step."""
    marks = [Mark(e["iteration"], "restart", f"restart from {e['iteration']:,}")
             for e in run.all("restart")]  # fmt: skip
    marks += [Mark(e["iteration"], "stop", f"stop: {e['cause']}") for e in run.all("stop")]
    marks += [Mark(e["iteration"], "save", "checkpoint") for e in run.standing("save")]
    marks += [Mark(e["iteration"], "skip", f"passed over: {e['reason']}")
              for e in run.standing("skip")]  # fmt: skip
    return marks + [Mark(step, "spike", "loss spike") for step in spikes(run.standing("step"))]


def spikes(steps: Sequence[dict]) -> list[int]:
    """Steps that were taken although --skip-loss-spikes would have passed over them."""
    steps = [step for step in steps if step["lm_loss"] is not None]
    losses = [step["lm_loss"] for step in steps]
    return [
        steps[i]["iteration"]
        for i in _candidates(np.array(losses))
        if is_spike(losses[i], losses[max(0, i - WINDOW) : i])
    ]


def _candidates(losses: np.ndarray) -> list[int]:
    """Places of the losses (n,) more than SIGMAS - 1 standard deviations above the mean of the WINDOW before
    them, by running sums: of a long run few are left to be looked at closely."""
    centred = losses - losses.mean() if losses.size else losses
    sums, squares = (np.concatenate(([0.0], np.cumsum(centred**power))) for power in (1, 2))
    ends = np.arange(1, losses.size)
    starts = np.maximum(0, ends - WINDOW)
    means = (sums[ends] - sums[starts]) / (ends - starts)
    variances = (squares[ends] - squares[starts]) / (ends - starts) - means**2
    far = centred[1:] > means + (SIGMAS - 1) * np.sqrt(np.maximum(0.0, variances))
    return (ends[far]).tolist()


def learning_curves(run: Run) -> Html:
    """Loss and learning rate over the steps."""
    steps, evaluations = _steps(run), _evaluations(run)
    taken = [(s["iteration"], s["lm_loss"]) for s in steps if s["lm_loss"] is not None]
    held_out = [(e["iteration"], e["validation_loss"]) for e in evaluations]
    lines = [Line("training", taken, "c1"), Line("validation", held_out, "c2", dots=True)]
    rates = [Line("rate", [(s["iteration"], s["learning_rate"]) for s in steps], "c4")]
    rate = Axis("learning rate", lambda y: f"{y:.3g}", from_zero=True)
    return joined(
        line_chart("Loss", lines, STEP, LOSS, marks_by_step(run)),
        line_chart("Learning rate", rates, STEP, rate),
    )


def speed_curves(run: Run) -> Html:
    """Tokens a second, and the share of the devices' peak where that is known."""
    steps = _steps(run)
    tokens = [(s["iteration"], s["tokens_per_second"]) for s in steps]
    use = [(s["iteration"], 100 * s["mfu"]) for s in steps if s.get("mfu")]
    rate = Axis("tokens a second", lambda y: f"{y:,.0f}", from_zero=True)
    charts = [line_chart("Throughput", [Line("tokens a second", tokens, "c3")], STEP, rate)]
    if use:
        percent = Axis("model FLOPs utilisation (%)", lambda y: f"{y:.1f}", from_zero=True)
        charts.append(line_chart("MFU", [Line("MFU", use, "c5")], STEP, percent))
    else:
        charts.append(element("p", NO_MFU, class_="note"))
    return joined(*charts)


def texts(run: Run) -> Html | None:
    """Each prompt with what the model made of it at the evaluations, earliest first."""
    found = run.standing("continuations")
    if not found:
        return None
    losses = {e["iteration"]: e["validation_loss"] for e in _evaluations(run)}
    prompts = list(dict.fromkeys(text["prompt"] for event in found for text in event["texts"]))
    return element(
        "div", *(_of_prompt(prompt, found, losses) for prompt in prompts), class_="texts"
    )


def _of_prompt(prompt: str, found: list[dict], losses: dict[int, float]) -> Html:
    rows = [
        _continued(prompt, text["continuation"], event["iteration"], losses)
        for event in found
        for text in event["texts"]
        if text["prompt"] == prompt
    ]
    shown = spread(rows, TEXTS_SHOWN)
    parts = [element("h3", prompt), element("ol", *shown)]
    if len(rows) > len(shown):
        more = spread(rows, TEXTS_FOLDED)
        count = f"{len(more)} of {len(rows)}" if len(more) < len(rows) else f"all {len(rows)}"
        summary = element("summary", f"{count} evaluations")
        parts.append(element("details", summary, element("ol", *more)))
    return element("article", *parts, class_="card")


def _continued(prompt: str, text: str, iteration: int, losses: dict[int, float]) -> Html:
    loss = f", validation loss {losses[iteration]:.2f}" if iteration in losses else ""
    when = element("span", f"step {iteration:,}{loss}", class_="when")
    words = element("p", element("span", prompt, class_="prompt"), text.rstrip() or " (nothing)")
    return element("li", when, words)


def spread(rows: list, count: int) -> list:
    """At most `count` of them: the first, the last, and others at equal distances."""
    if len(rows) <= count:
        return rows
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]
