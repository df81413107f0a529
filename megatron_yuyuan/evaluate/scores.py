"""What answers are worth against their references, in three protocols side by side. Imports no torch.

(a) mean of sentence BLEU    as the table of YuyuanQA was probably made; evaluate/bleu.py
(b) corpus BLEU              sacreBLEU's, which papers compare
(c) exact match, token F1    SQuAD's: lower case, without punctuation and articles. Source:
                             Rajpurkar et al. 2016, arXiv:1606.05250, `normalize_answer`
    chrF                     F2 of character 1- to 6-grams. Source: Popovic 2015, W15-3049
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sacrebleu.metrics import CHRF

from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate.bleu import (
    CORPUS_SMOOTHING,
    ORDERS,
    SENTENCE_SMOOTHING,
    Orders,
    corpus_bleu,
    corpus_signature,
    sentence_bleu,
    sentence_signature,
)

PROVENANCE = (
    "(a) reads YuyuanQA's published table as means of NLTK's sentence BLEU; its script was never published. Of\n"
    "NLTK's smoothing methods only 5 and 7 raise the 1-gram score of such answers as that table does; by them a\n"
    "perfect answer is worth more than 1."
)
"""What has to be said where (a) is shown."""
TITLES = {
    "sentence_bleu": "(a) mean of sentence BLEU",
    "corpus_bleu": "(b) corpus BLEU by sacreBLEU",
}
"""Field of `Scores` -> how its tables are headed."""
N_GRAMS = tuple(f"{n}-gram" for n in ORDERS)
SQUAD = "squad|nrefs:1|case:lower|punctuation:no|articles:no"


@dataclass(frozen=True)
class Scores:
    """What a list of answers is worth, every value 0 to 1 (sentence BLEU by methods 5 and 7 may
    exceed 1)."""

    sentence_bleu: dict[str, Orders]
    """unsmoothed, method5, method7 -> mean over pairs of BLEU-1 to BLEU-4."""
    corpus_bleu: dict[str, Orders]
    """unsmoothed, smoothed -> BLEU-1 to BLEU-4."""
    exact_match: float
    """Share of answers that are their reference."""
    token_f1: float
    """Mean over pairs of the harmonic mean of precision and recall of the tokens."""
    chrf: float
    pairs: int


@dataclass(frozen=True)
class ScoreTable:
    """One table of a report: a row of values for every system that was scored."""

    title: str
    signature: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
    is_smoothed: bool = False


def score(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """Compare each answer with the one reference at its place; of one pair, the scores of that pair.

    Raises DataError: no pair, or unequal numbers.
    """
    if not answers or len(answers) != len(references):
        raise DataError(
            f"{len(answers)} answers for {len(references)} references",
            "they are compared in pairs",
            "a file with at least one question and its answer",
        )
    sentences = [sentence_bleu(a, r) for a, r in zip(answers, references, strict=True)]
    words = [(squad_tokens(a), squad_tokens(r)) for a, r in zip(answers, references, strict=True)]
    return Scores(
        {
            smoothing: tuple(map(fmean, zip(*(each[smoothing] for each in sentences), strict=True)))
            for smoothing in SENTENCE_SMOOTHING
        },
        corpus_bleu(answers, references),
        fmean(answer == reference for answer, reference in words),
        fmean(_f1(answer, reference) for answer, reference in words),
        CHRF().corpus_score(answers, [references]).score / 100,
        len(answers),
    )


def signatures() -> dict[str, Any]:
    """The protocol of every value of `Scores`, under its name there: a text, of BLEU one by smoothing."""
    chrf = CHRF()
    chrf.corpus_score(["a"], [["a"]])  # it wants to have seen the number of references
    return {
        "sentence_bleu": {name: sentence_signature(name) for name in SENTENCE_SMOOTHING},
        "corpus_bleu": {name: corpus_signature(name) for name in CORPUS_SMOOTHING},
        "exact_match": SQUAD,
        "token_f1": SQUAD,
        "chrf": chrf.get_signature().format(),
    }


def score_tables(systems: Mapping[str, Scores], protocol: Mapping[str, Any]) -> list[ScoreTable]:
    """The tables of all three protocols: those of (a) and (b) shaped as YuyuanQA's, one a smoothing. protocol:
    the `signatures` of when they were scored."""
    tables = []
    for name, heading in TITLES.items():
        for smoothing, signature in protocol[name].items():
            rows = {system: getattr(scores, name)[smoothing] for system, scores in systems.items()}
            title, is_smoothed = f"{heading}, {smoothing}", smoothing != "unsmoothed"
            tables.append(ScoreTable(title, signature, N_GRAMS, rows, is_smoothed))
    rows = {system: (s.exact_match, s.token_f1, s.chrf) for system, s in systems.items()}
    signature = f"{protocol['exact_match']}; chrF: {protocol['chrf']}"
    title = "(c) exact match, token F1, chrF"
    return [*tables, ScoreTable(title, signature, ("exact match", "token F1", "chrF"), rows)]


def markdown(table: ScoreTable) -> str:
    """The table with its protocol above it."""
    lines = [f"{table.title} ({table.signature}):", ""]
    lines += [
        f"| system | {' | '.join(table.columns)} |",
        "| --- " * (len(table.columns) + 1) + "|",
    ]
    for system, values in table.rows.items():
        cells = [system.replace("|", "\\|"), *(f"{value:.4f}" for value in values)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(systems: Mapping[str, Scores]) -> str:
    """Every table, and where the first protocol comes from."""
    pairs = next(iter(systems.values())).pairs
    tables = [markdown(table) for table in score_tables(systems, signatures())]
    return "\n\n".join([f"{pairs} pairs", *tables, PROVENANCE])


def squad_tokens(text: str) -> list[str]:
    """The words of a text as SQuAD compares them."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _f1(answer: Iterable[str], reference: Iterable[str]) -> float:
    """Harmonic mean of precision and recall of a bag of tokens: 2 common / (both lengths); of two
    empty bags 1, as they are equal."""
    ours, theirs = Counter(answer), Counter(reference)
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0
