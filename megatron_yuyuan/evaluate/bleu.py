"""BLEU-1 to BLEU-4 of answers against references, by sacrebleu, with the protocol beside every
number.

Corpus BLEU with equal weights on the 1- to n-grams. `unsmoothed`: a corpus that shares no n-gram
scores 0. `smoothed`: sacrebleu's exponential smoothing, which replaces zero counts alone, so that
on a corpus that shares 4-grams both tables say the same. Published tables of YuyuanQA name neither
tokenisation nor smoothing and were probably means over sentences: they cannot be compared with
these. Source: Papineni et al. 2002; Post 2018, arXiv:1804.08771.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sacrebleu.metrics import BLEU

from megatron_yuyuan.errors import DataError

ORDERS = (1, 2, 3, 4)
SMOOTHING = {"unsmoothed": "none", "smoothed": "exp"}
"""Table -> sacrebleu's smooth_method."""


@dataclass(frozen=True)
class Scores:
    """What a list of answers is worth, 0 to 1."""

    bleu: dict[str, tuple[float, ...]]
    """Table name -> BLEU-1, BLEU-2, BLEU-3, BLEU-4."""
    signatures: dict[str, str]
    """Table name -> sacrebleu's signature."""
    exact_match: float
    """Share of answers that are their reference, white space aside."""
    pairs: int


def score(hypotheses: Sequence[str], references: Sequence[str]) -> Scores:
    """Compare each hypothesis with the one reference at its place. Raises DataError: no pair, or
    unequal numbers."""
    if not hypotheses or len(hypotheses) != len(references):
        raise DataError(
            f"{len(hypotheses)} answers for {len(references)} references",
            "they are compared in pairs",
            "a file with at least one question and its answer",
        )
    bleu, signatures = {}, {}
    for table, method in SMOOTHING.items():
        metrics = [
            BLEU(max_ngram_order=order, smooth_method=method, tokenize="13a") for order in ORDERS
        ]
        bleu[table] = tuple(
            m.corpus_score(list(hypotheses), [list(references)]).score / 100 for m in metrics
        )
        signatures[table] = metrics[-1].get_signature().format()
    equal = sum(h.split() == r.split() for h, r in zip(hypotheses, references, strict=True))
    return Scores(bleu, signatures, equal / len(hypotheses), len(hypotheses))


def bleu_table(rows: Mapping[str, Scores], decoding: str) -> str:
    """Two Markdown tables, unsmoothed and smoothed, one row a model, with the protocol above
    each."""
    lines = []
    for table in SMOOTHING:
        first = next(iter(rows.values()))
        lines += [
            f"{table} (corpus BLEU, sacrebleu {first.signatures[table]}; {first.pairs} pairs; {decoding}):",
            "",
            "| model | 1-gram | 2-gram | 3-gram | 4-gram |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {name} | {' | '.join(f'{value:.4f}' for value in scores.bleu[table])} |"
            for name, scores in rows.items()
        ]
        lines.append("")
    return "\n".join(lines).rstrip()
