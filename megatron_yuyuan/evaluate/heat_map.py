"""Where the surprise lies: statements as one HTML page, every token coloured by its log-probability.

One file, no script, nothing loaded from elsewhere; every text is escaped.
"""

import html
from collections.abc import Sequence

from megatron_yuyuan.evaluate.facts import Cutoffs, Judgement
from megatron_yuyuan.evaluate.likelihood import Surprise

MOST = 12.0
"""Nats at which the colour is full: a token of probability 6e-6."""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Fact judge</title><style>
body {{ font: 16px/1.7 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .3rem; }}
p {{ margin: .2rem 0; }}
.token {{ white-space: pre-wrap; border-radius: 2px; }}
.note {{ color: #555; font-size: .85rem; }}
</style></head><body>
<h1>Fact judge</h1>
<p class="note">{model}. The darker a token, the less the model expected it; point at one for its
log-probability in nats. Not medical advice.</p>
{questions}
</body></html>
"""


def heat_map(judgements: Sequence[Judgement], cutoffs: Cutoffs, model: str) -> str:
    """The page of all judgements. `model` says which one read them."""
    sections = "\n".join(_section(one, cutoffs) for one in judgements)
    return PAGE.format(model=html.escape(model), questions=sections)


def _section(one: Judgement, cutoffs: Cutoffs) -> str:
    heading = f"<h2>{html.escape(one.question.text)}</h2>"
    if one.margin is None:
        return f'{heading}\n<p class="note">refused: {html.escape(one.refused)}</p>'
    label = f", labelled {html.escape(one.question.label)}" if one.question.label else ""
    cut = max(surprise.context_cut for surprise in one.surprises)
    left_out = f"; {cut} tokens of the context had no place" if cut else ""
    lines = [_line(surprise) for surprise in one.surprises]
    verdict = f"{one.verdict(cutoffs)} (margin {one.margin:+.4f} nats a token){label}{left_out}"
    return "\n".join([heading, f'<p class="note">{verdict}</p>', *lines])


def _line(surprise: Surprise) -> str:
    """A statement, token by token, and its mean."""
    pairs = zip(surprise.tokens, surprise.log_probabilities, strict=True)
    tokens = "".join(
        f'<span class="token" style="background: rgba(214, 66, 34, {_shade(logp):.2f})" '
        f'title="{logp:.2f}">{html.escape(token)}</span>'
        for token, logp in pairs
    )
    return f'<p>{tokens} <span class="note">{surprise.mean:.4f}</span></p>'


def _shade(log_probability: float) -> float:
    """0 for a token that was certain, at most 0.85, so that the text stays legible."""
    return 0.85 * min(1.0, -log_probability / MOST)
