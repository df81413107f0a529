"""The page: its sections in the order in which a reader asks. It loads nothing and runs nothing."""

from collections.abc import Callable
from datetime import datetime

from megatron_yuyuan import __version__
from megatron_yuyuan.report.course import course, time_by_cause
from megatron_yuyuan.report.learning import learning_curves, speed_curves, summary, texts
from megatron_yuyuan.report.markup import Html, element
from megatron_yuyuan.report.record import Run
from megatron_yuyuan.report.scores import answer_scores, judged_facts
from megatron_yuyuan.report.setup import configuration, data_cards, pipeline
from megatron_yuyuan.report.style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""For the browser: should a text ever escape its escaping, it could still load and run nothing."""

Section = tuple[str, str, str, Callable[[Run], Html | None]]
SECTIONS: list[Section] = [
    ("texts", "What it writes",
     "The same prompts, continued by the model at each evaluation with the same seed. Words of a "
     "language model, and no medical advice.", texts),
    ("learning", "How it learned",
     "The loss says how surprised the model is by the next token: lower is better. Training text it has "
     "learned from; from validation text it never learns.", learning_curves),
    ("speed", "How fast", "Tokens are pieces of words.", speed_curves),
    ("time", "Where the time went",
     "Goodput is the share of the wall time that went to steps that count.", time_by_cause),
    ("course", "What happened", "Starts, checkpoints and interruptions, by the clock.", course),
    ("scores", "Answers against references", "As tools/evaluate_qa.py scored them.", answer_scores),
    ("facts", "Facts judged", "As tools/judge_facts.py judged them: whether a statement or its negation is "
     "likelier to the model.", judged_facts),
    ("pipeline", "The pipeline", "Layers are divided over ranks that wait for each other.", pipeline),
    ("data", "Data", "The shards of tokens that were read.", data_cards),
    ("configuration", "Configuration", "Every setting that differs from its default.", configuration),
]  # fmt: skip
"""Anchor, heading, what a reader should know, and what makes the content; None leaves it out."""


def page(run: Run, title: str = "") -> str:
    """The whole page as text. title: in place of the directory's name. Raises DataError for a file of
    the run that is not what it should be."""
    title = title or run.name
    made = [(anchor, heading, lead, make(run)) for anchor, heading, lead, make in SECTIONS]
    shown = [section for section in made if section[3] is not None]
    links = (element("a", heading, href=f"#{anchor}") for anchor, heading, _, _ in shown)
    header = element("header", element("p", "Training report", class_="kind"), element("h1", title),
                     summary(run), element("nav", *links))  # fmt: skip
    sections = [
        element(
            "section", element("h2", heading), element("p", lead, class_="note"), content, id=anchor
        )
        for anchor, heading, lead, content in shown
    ]
    foot = (
        f"Made by tools/report.py of megatron_yuyuan {__version__} on {datetime.now():%Y-%m-%d %H:%M} from "
        f"{run.directory}. Not medical advice: a language model writes what is likely, not what is true."
    )
    body = element(
        "body", header, element("main", *sections), element("footer", element("p", foot))
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"
