"""BLEU-1 to BLEU-4 in two protocols: the mean of NLTK's sentence BLEU, and sacreBLEU's corpus BLEU.

    BLEU-n = BP * (p_1 * ... * p_n)^(1/n)        BP = min(1, exp(1 - reference length / answer length))

p_n is the share of the answer's n-grams that the reference has too, each counted no more often than
there. Source: Papineni et al. 2002. The protocols differ in the tokens, in what stands in for a p_n
of 0, and in whether matches are summed over all pairs (corpus) or scores are averaged (sentence).
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from sacrebleu.metrics import BLEU

Orders = tuple[float, ...]
"""BLEU-1, BLEU-2, BLEU-3, BLEU-4, each 0 to 1."""
ORDERS = (1, 2, 3, 4)
SENTENCE_SMOOTHING = ("unsmoothed", "method5", "method7")
"""The methods are those of Chen and Cherry 2014, ACL anthology W14-3346, as NLTK computes them."""
CORPUS_SMOOTHING = {"unsmoothed": "none", "smoothed": "exp"}
"""Table -> sacreBLEU's smooth_method."""
METHOD_4_K = 5
"""Method 4's constant in NLTK, which names it k."""


def sentence_bleu(answer: str, reference: str) -> dict[str, Orders]:
    """Every SENTENCE_SMOOTHING of one answer: what NLTK's `sentence_bleu` returns for str.split() of
    both texts and the weights (1, 0, 0, 0), (1/2, 1/2, 0, 0), ..., (1/4, 1/4, 1/4, 1/4).

    An answer without a word of the reference is worth 0 however it is smoothed.
    """
    tokens, expected = answer.split(), reference.split()
    matches, totals = zip(*(_count(tokens, expected, n) for n in (*ORDERS, 5)), strict=True)
    if not matches[0]:
        return dict.fromkeys(SENTENCE_SMOOTHING, (0.0,) * len(ORDERS))
    precisions = [m / total for m, total in zip(matches, totals, strict=True)]
    filled = _method4(precisions, totals, len(tokens))
    brevity = min(1.0, math.exp(1 - len(expected) / len(tokens)))
    return {
        "unsmoothed": _cumulative(precisions, brevity),
        "method5": _cumulative(_method5(precisions), brevity),
        "method7": _cumulative(_method5(filled), brevity),
    }


def sentence_signature(smoothing: str) -> str:
    """Everything that decides the mean of `sentence_bleu`, in sacreBLEU's manner."""
    return f"nltk.sentence_bleu|mean of pairs|nrefs:1|case:mixed|tok:str.split|smooth:{smoothing}|weights:1/n"


def corpus_bleu(answers: Sequence[str], references: Sequence[str]) -> dict[str, Orders]:
    """Every CORPUS_SMOOTHING of the whole list, by sacreBLEU with the tokenisation 13a. Its
    exponential smoothing replaces counts of 0 alone: where 4-grams match, both tables are equal.
    Source: Post 2018, arXiv:1804.08771."""
    whole = BLEU(smooth_method="none", tokenize="13a").corpus_score(answers, [references])
    return {
        table: tuple(
            BLEU.compute_bleu(
                whole.counts[:n],
                whole.totals[:n],
                whole.sys_len,
                whole.ref_len,
                smooth_method=method,
                max_ngram_order=n,
            ).score
            / 100
            for n in ORDERS
        )
        for table, method in CORPUS_SMOOTHING.items()
    }


def corpus_signature(table: str) -> str:
    """sacreBLEU's signature of a table of `corpus_bleu`."""
    metric = BLEU(smooth_method=CORPUS_SMOOTHING[table], tokenize="13a")
    metric.corpus_score(["a"], [["a"]])  # it wants to have seen the number of references
    return metric.get_signature().format()


def _count(tokens: list[str], expected: list[str], n: int) -> tuple[int, int]:
    """(n-grams that match, n-grams there are; 1 where there are none)."""
    ours, theirs = (
        Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
        for text in (tokens, expected)
    )
    return (ours & theirs).total(), max(1, ours.total())


def _cumulative(precisions: Sequence[float], brevity: float) -> Orders:
    """BLEU-n for every n of ORDERS."""
    return tuple(brevity * math.prod(p ** (1 / n) for p in precisions[:n]) for n in ORDERS)


def _method4(precisions: list[float], totals: Sequence[int], length: int) -> list[float]:
    """The first of p_1 to p_4 that is 0 becomes ln(length) / (2 k) matches of its n-grams, the second
    half of that, and so on (none of an answer of one token: ln 1 = 0). p_5 stays."""
    filled, share = list(precisions), math.log(length) / METHOD_4_K
    for i in range(len(ORDERS)):
        if precisions[i] == 0:
            share /= 2
            filled[i] = share / totals[i]
    return filled


def _method5(precisions: list[float]) -> list[float]:
    """m_n = (m_(n-1) + p_n + p_(n+1)) / 3 with m_0 = p_1 + 1: even p_1 is raised, and m_n may exceed 1.
    p_1 to p_5 in, m_1 to m_4 out."""
    smoothed = [precisions[0] + 1]
    for this, after in pairwise(precisions):
        smoothed.append((smoothed[-1] + this + after) / 3)
    return smoothed[1:]
