"""Answers, references and scores as one HTML page to read. It loads nothing and runs nothing: no
script, no file from elsewhere, and every text in it is escaped."""

import re
from collections.abc import Iterator
from html import escape

from megatron_yuyuan.evaluate.answers import Answered, Systems, score_one, score_systems
from megatron_yuyuan.evaluate.scores import (
    PROVENANCE,
    ScoreTable,
    score_tables,
    signatures,
    squad_tokens,
)

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""For the browser: should a text ever escape its escaping, it could still load and run nothing."""
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { border-bottom: 1px solid #8886; padding: .2rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
article { border-top: 2px solid #8886; margin-top: 2rem; }
h4 { margin: 1rem 0 0; font-weight: 600; }
p { margin: .3rem 0; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.reference { border-left: 4px solid #4a86; padding-left: .8rem; }
.signature, .scores { color: #888; font-size: .85rem; overflow-wrap: anywhere; font-weight: 400; }
mark { background: #fd06; color: inherit; }
"""
WARNING = (
    "BLEU and its kin count shared words, not truth: an answer may score well and be wrong. "
    "These are texts of a language model and no medical advice."
)
LEGEND = "Words of an answer that stand in the reference too are marked."


def answers_page(title: str, systems: Systems) -> str:
    """The page: every table of scores, then every question with its reference and answers."""
    tables = score_tables(score_systems(systems), signatures())
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(WARNING)}</p>",
        *map(_table, tables),
        f"<p>{escape(PROVENANCE)}</p>",
        f"<h2>Answers</h2>\n<p>{escape(LEGEND)}</p>",
        *_articles(systems),
    ]
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    )
    text = "\n".join(body)
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{text}\n</body>\n</html>\n'


def _table(table: ScoreTable) -> str:
    """One table under its title and protocol."""
    rows = [f"<tr>{_cells('th', ('system', *table.columns))}</tr>"]
    for system, values in table.rows.items():
        rows.append(f"<tr>{_cells('td', (system, *(f'{value:.4f}' for value in values)))}</tr>")
    heading = f'<h3>{escape(table.title)}</h3>\n<p class="signature">{escape(table.signature)}</p>'
    return "\n".join([heading, "<table>", *rows, "</table>"])


def _cells(tag: str, texts: tuple[str, ...]) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)


def _articles(systems: Systems) -> Iterator[str]:
    """One article a question: the reference, then what every system said."""
    for number, answers in enumerate(zip(*systems.values(), strict=True), start=1):
        yield f'<article id="pair-{number}">\n<h3>{number}. {escape(answers[0].question)}</h3>'
        reference = escape(answers[0].reference)
        yield f'<h4>reference</h4>\n<p class="text reference">{reference}</p>'
        for system, answered in zip(systems, answers, strict=True):
            yield _answer(system, answered)
        yield "</article>"


def _answer(system: str, answered: Answered) -> str:
    """One answer under its system's name and the scores of the pair."""
    scores = score_one(answered)
    values = (
        f"BLEU-1 {scores.sentence_bleu['unsmoothed'][0]:.3f}, "
        f"BLEU-4 {scores.sentence_bleu['unsmoothed'][3]:.3f}, "
        f"token F1 {scores.token_f1:.3f}, chrF {scores.chrf:.3f}"
    )
    said = _marked(answered) or '<span class="scores">(empty)</span>'
    heading = f'<h4>{escape(system)} <span class="scores">{values}</span></h4>'
    return f'{heading}\n<p class="text">{said}</p>'


def _marked(answered: Answered) -> str:
    """The answer, escaped, with the words that stand in the reference too (as SQuAD compares them)
    in <mark>."""
    known = set(squad_tokens(answered.reference))
    pieces = re.split(r"(\s+)", answered.answer)
    return "".join(
        f"<mark>{escape(piece)}</mark>" if known & set(squad_tokens(piece)) else escape(piece)
        for piece in pieces
    )
