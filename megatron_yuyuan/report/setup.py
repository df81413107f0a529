"""What a run was made from: its configuration, its shards, its pipeline."""

import dataclasses
import json

from megatron_yuyuan.cli import field_documentation
from megatron_yuyuan.config import Config, flag_of
from megatron_yuyuan.data.blend import parse_blend
from megatron_yuyuan.data.data_card import data_card
from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.question_file import SUFFIXES as QUESTION_FILES
from megatron_yuyuan.errors import YuyuanError
from megatron_yuyuan.report.markup import Html, element, joined
from megatron_yuyuan.report.pipeline_trace import (
    Action,
    length,
    measured_bubble,
    read_timeline,
    theoretical_bubble,
)
from megatron_yuyuan.report.record import Run

SHARDS = ("data_path", "train_data_path", "valid_data_path")
KINDS = {"forward": "c1", "backward": "c2", "weights": "c3"}
"""Kind of an action -> color."""
COUNTS = ("documents", "tokens", "dtype", "kind")
"""Fields of a data card that stand open, beside the lengths; the rest can be unfolded."""


def configuration(run: Run) -> Html:
    """Every setting that is not the default, by table, with what it means."""
    meanings, parts = field_documentation(), []
    for group in dataclasses.fields(Config):
        ours, defaults = getattr(run.config, group.name), getattr(Config, group.name)
        rows = [
            _setting(field.name, getattr(ours, field.name), field.default, meanings[field.name])
            for field in dataclasses.fields(defaults)
            if getattr(ours, field.name) != field.default
        ]
        if rows:
            parts.append(element("h3", f"[{group.name}]"))
            parts.append(element("ul", *rows, class_="settings"))
    return joined(*parts)


def _setting(name: str, value: object, default: object, meaning: str) -> Html:
    return element(
        "li",
        element("code", name),
        element("b", _written(value)),
        element("span", f"default {_written(default)}", class_="when"),
        element("p", meaning),
    )


def _written(value: object) -> str:
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text or "none"


def data_cards(run: Run) -> Html | None:
    """A card for every shard that the run read and that lies where it did."""
    words = [(field, word) for field in SHARDS for word in _prefixes(run.config, field)]
    return joined(*(_card(field, prefix) for field, prefix in words)) if words else None


def _prefixes(config: Config, field: str) -> list[str]:
    words = getattr(config.data, field)
    return parse_blend(words, flag_of(field))[0] if words else []


def _card(field: str, prefix: str) -> Html:
    heading = element("h3", prefix.rpartition("/")[2], element("span", f" {field}", class_="when"))
    if prefix.endswith(QUESTION_FILES):
        note = element("p", "A file of questions and answers.", class_="note")
        return element("article", heading, note, class_="card")
    try:
        card = data_card(IndexedDataset(prefix))
    except YuyuanError as error:
        note = element("p", f"Not described: {error.what}.", class_="note")
        return element("article", heading, note, class_="card")
    counts = {name: card.pop(name, None) for name in COUNTS}
    lengths = card.pop("tokens_per_document", {})
    figures = [(name, value) for name, value in counts.items() if value is not None]
    if lengths:
        said = "mean {mean:,}, median {median:,}, 99% up to {p99:,}, longest {longest:,}"
        figures.append(("tokens a document", said.format(**lengths)))
    pairs = (element("div", element("dt", n), element("dd", _counted(v))) for n, v in figures)
    rest = element("pre", json.dumps(card, indent=1, ensure_ascii=False))
    more = element("details", element("summary", "sources and checksums"), rest)
    return element("article", heading, element("dl", *pairs, class_="facts"), more, class_="card")


def _counted(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def pipeline(run: Run) -> Html | None:
    """The traced step of every pipeline rank, and its bubble. None without traces, or of one stage.
    Raises DataError for a damaged trace."""
    timeline = read_timeline(run.directory, run.config)
    if not timeline:
        return None
    schedule, share = theoretical_bubble(timeline, run.config)
    whole = length(timeline)
    said = (
        f"One step of the schedule {schedule}, {_milliseconds(whole)}: a bar is the forward or backward of "
        f"one micro batch, an empty place is waiting. The ranks shown waited {measured_bubble(timeline):.1%} "
        f"of the time; if stages were equal and messages took no time it would be {float(share):.1%}."
    )
    kinds = {action.kind for actions in timeline.values() for action in actions}
    keys = (element("span", k, class_=f"key {KINDS[k]}") for k in KINDS if k in kinds)
    rows = (_lane(rank, actions, whole) for rank, actions in timeline.items())
    ends = element("p", *(element("span", _milliseconds(end)) for end in (0, whole)), class_="ends")
    legend = element("p", *keys, class_="legend")
    return joined(element("p", said), legend, element("div", *rows, ends, class_="timeline"))


def _milliseconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:,.1f} ms"


def _lane(rank: int, actions: list[Action], whole: int) -> Html:
    """A rank's actions on the time of the whole step."""
    bars = []
    for action in actions:
        took, width = action.end - action.start, 100 * (action.end - action.start) / whole
        what = f"stage {action.stage}, {action.kind} of micro batch {action.micro_batch}"
        style = f"left: {100 * action.start / whole:.2f}%; width: {width:.2f}%"
        number = str(action.micro_batch) if width > 3 else None
        title = f"{what}, {_milliseconds(took)}"
        bars.append(element("i", number, class_=KINDS[action.kind], style=style, title=title))
    stages = sorted({action.stage for action in actions})
    name = f"rank {rank}, stage{'s' * (len(stages) > 1)} {', '.join(map(str, stages))}"
    return element(
        "div", element("span", name), element("div", *bars, class_="lane"), class_="rank"
    )
