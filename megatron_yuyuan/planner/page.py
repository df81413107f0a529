"""Plans as a person reads them: tables, a chart, a page."""

import base64
import html
import io
from collections.abc import Sequence
from typing import BinaryIO

from megatron_yuyuan.config import Config, flag_of
from megatron_yuyuan.planner.plan import Plan, layout_settings

Rows = list[list[str]]
"""A table: its heads, then a row per plan."""


def heading(plan: Plan) -> str:
    """The model, the cluster and the step that a plan is for, in a line."""
    cluster, config = plan.cluster, plan.config
    return (
        f"{config.model.num_parameters:,} parameters on {cluster.gpus} GPUs in {cluster.nodes} "
        f"node{'s' * (cluster.nodes > 1)}, {cluster.network / 1e9:g} GB/s out of each; steps of "
        f"{config.training.global_batch_size} samples of {config.data.seq_length} tokens, computed in half precision"
    )


def flags(plan: Plan, given: Config) -> str:
    """What to write behind a configuration to get the plan's layout, in half precision."""
    is_half = given.training.bf16 or given.training.fp16
    words, settings = [] if is_half else ["--bf16"], layout_settings(given)
    for setting, value in plan.settings.items():
        if value == settings[setting]:
            continue
        words.append(flag_of(f"no_{setting}" if value is False else setting))
        words += [] if isinstance(value, bool) else [str(value)]
    return " ".join(words) or "none: it is the configuration's own"


def ranking(plans: Sequence[Plan], tokens: float) -> Rows:
    """What each plan comes to; hours and energy for so many tokens."""
    heads = ["layout", "GiB", "s/step", "tokens/s", "MFU", "hours", "kWh"]
    return [heads] + [
        [
            plan.name,
            f"{plan.memory.total / 2**30:.1f}",
            f"{plan.time.total:.3f}",
            f"{plan.tokens_per_second:,.0f}",
            f"{plan.mfu:.1%}",
            f"{plan.hours(tokens):,.2f}",
            f"{plan.kilowatt_hours(tokens):,.1f}",
        ]
        for plan in plans
    ]


def memory_by_part(plans: Sequence[Plan]) -> Rows:
    """GiB of the fullest rank."""
    rows = [[f"{size / 2**30:.2f}" for size in vars(plan.memory).values()] for plan in plans]
    return _named("GiB of the fullest rank", list(vars(plans[0].memory)), plans, rows)


def time_by_part(plans: Sequence[Plan]) -> Rows:
    """Milliseconds of a step."""
    rows = [[f"{1000 * part:,.0f}" for part in vars(plan.time).values()] for plan in plans]
    return _named("ms of a step", list(vars(plans[0].time)), plans, rows)


def _named(title: str, parts: list[str], plans: Sequence[Plan], rows: Rows) -> Rows:
    return [[title, *parts]] + [[plan.name, *row] for plan, row in zip(plans, rows, strict=True)]


def draw_chart(plans: Sequence[Plan], output: BinaryIO) -> None:
    """Write a PNG: a bar of memory and one of time for each plan, by part, the first on top.

    Needs matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 1.9 + 0.42 * len(plans)), layout="constrained")
    memory, time = figure.subplots(1, 2, sharey=True)
    _bars(memory, plans, [{k: v / 2**30 for k, v in vars(p.memory).items()} for p in plans])
    _bars(time, plans, [vars(plan.time) for plan in plans])
    limit = plans[0].cluster.gpu.memory_gib
    memory.axvline(limit, color="black", linestyle="--", linewidth=1)
    memory.set(xlabel=f"GiB of the fullest rank; dashed: the GPU's {limit:g}")
    time.set(xlabel="seconds of a step")
    for row, plan in enumerate(plans):
        time.text(plan.time.total, row, f" {plan.mfu:.1%} MFU", va="center", fontsize=8)
    time.margins(x=0.2)
    memory.invert_yaxis()
    figure.savefig(output, format="png", dpi=110)


def _bars(panel, plans: Sequence[Plan], parts: list[dict[str, float]]) -> None:
    """Stacked horizontal bars, one a plan, with a legend of the parts above."""
    left = [0.0] * len(plans)
    for part in parts[0]:
        widths = [of_plan[part] for of_plan in parts]
        panel.barh([plan.name for plan in plans], widths, left=left, height=0.7, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    panel.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    panel.grid(axis="x", alpha=0.3)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 90em; padding: 0 1em; }}
table {{ border-collapse: collapse; margin: 1em 0 2em; }}
th, td {{ border-bottom: 1px solid #8886; padding: .2em .8em; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
img {{ background: white; max-width: 100%; }} pre {{ white-space: pre-wrap; }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


def write_page(plans: Sequence[Plan], given: Config, tokens: float, output: BinaryIO) -> None:
    """One HTML file that needs no other: the tables, the chart, the flags of the first plan."""
    picture = io.BytesIO()
    draw_chart(plans, picture)
    image = base64.b64encode(picture.getvalue()).decode()
    tables = (ranking(plans, tokens), memory_by_part(plans), time_by_part(plans))
    body = [
        f"<p>Predicted by <code>tools/plan_parallelism.py</code>. {html.escape(heading(plans[0]))}. "
        f"Hours and kWh are for {tokens:g} tokens.</p>",
        f'<img alt="memory and time by layout" src="data:image/png;base64,{image}">',
        *map(_html_table, tables),
        f"<p>Flags of the first:</p><pre>{html.escape(flags(plans[0], given))}</pre>",
    ]
    title = f"Layouts for {plans[0].cluster.gpus} GPUs"
    output.write(PAGE.format(title=title, body="\n".join(body)).encode())


def _html_table(rows: Rows) -> str:
    lines = []
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        cells = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"
