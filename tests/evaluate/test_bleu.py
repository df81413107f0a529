"""BLEU: values by hand, sentences as NLTK scores them, the corpus as sacreBLEU does."""

import math
import random
import re
import warnings

import pytest
import sacrebleu

from megatron_yuyuan.evaluate.bleu import (
    CORPUS_SMOOTHING,
    SENTENCE_SMOOTHING,
    corpus_bleu,
    corpus_signature,
    sentence_bleu,
    sentence_signature,
)

ANSWERS = [
    "Gout is a disease of the joints .",
    "Take rest and drink plenty of water daily .",
    "I do not know .",
]
REFERENCES = [
    "Gout is a painful disease of the joints .",
    "Rest and drink plenty of water .",
    "It is a cancer of blood .",
]
WEIGHTS = [tuple([1 / n] * n + [0] * (4 - n)) for n in (1, 2, 3, 4)]


def nltk_bleu(answer: str, reference: str) -> dict[str, list[float]]:
    """Cumulative BLEU-1 to BLEU-4 by NLTK, unsmoothed and by methods 5 and 7."""
    nltk = pytest.importorskip("nltk.translate.bleu_score", reason="needs nltk, the reference")
    methods = {name: getattr(nltk.SmoothingFunction(), name) for name in SENTENCE_SMOOTHING[1:]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some n-grams have no match
        return {
            name: nltk.sentence_bleu([reference.split()], answer.split(), WEIGHTS, method)
            for name, method in ({"unsmoothed": None} | methods).items()
        }


def random_pairs(count: int) -> list[tuple[str, str]]:
    """Texts of few words, so that matches of every order occur; answers of 0, 1 and 2 words too."""
    chance, words = random.Random(7), "gout is a Disease of joints .".split()

    def text(longest: int) -> str:
        return " ".join(chance.choices(words, k=chance.randint(0, longest)))

    pairs = [(text(9), text(9) or "gout") for _ in range(count)]
    return [*pairs, *((r, r) for _, r in pairs[:20]), *((r + " x y z", r) for _, r in pairs[:20])]


def test_sentences_are_scored_as_nltk_scores_them():
    """To 1e-12; and all the ways to be smoothed occur, so that none agrees by never being used."""
    zeros, raised, several_filled = 0, 0, 0
    for answer, reference in [*random_pairs(400), *zip(ANSWERS, REFERENCES, strict=True)]:
        found, expected = sentence_bleu(answer, reference), nltk_bleu(answer, reference)
        for smoothing in SENTENCE_SMOOTHING:
            assert found[smoothing] == pytest.approx(expected[smoothing], rel=0, abs=1e-12)
        zeros += found["unsmoothed"][0] == 0
        raised += found["method5"][0] > found["unsmoothed"][0] > 0
        several_filled += found["method7"][3] > found["method5"][3] > 0 == found["unsmoothed"][2]
    assert zeros > 20 and raised > 100 and several_filled > 50


def test_sentences_by_hand():
    """the cat sat / the cat sat down: every 1- to 3-gram matches, no 4-gram there; BP exp(1 - 4/3)."""
    brevity = math.exp(1 - 4 / 3)
    scores = sentence_bleu("the cat sat", "the cat sat down")
    assert scores["unsmoothed"] == pytest.approx((brevity, brevity, brevity, 0))
    first = (2 + 1 + 1) / 3
    second, third = (first + 1 + 1) / 3, ((first + 1 + 1) / 3 + 1 + 0) / 3
    means = (first, (first * second) ** 0.5, (first * second * third) ** (1 / 3))
    assert scores["method5"][:3] == pytest.approx([brevity * mean for mean in means])
    # Case counts, and a token is what stands between spaces.
    assert sentence_bleu("The cat.", "the cat .")["method7"] == (0, 0, 0, 0)


def test_a_perfect_sentence_is_worth_one_unsmoothed_and_more_by_the_methods():
    scores = sentence_bleu(REFERENCES[0], REFERENCES[0])
    assert scores["unsmoothed"] == pytest.approx((1, 1, 1, 1))
    assert scores["method7"] == scores["method5"] and scores["method7"][0] == pytest.approx(4 / 3)


def test_the_corpus_by_hand():
    brevity = math.exp(1 - 4 / 3)
    scores = corpus_bleu(["the cat sat"], ["the cat sat down"])
    assert scores["unsmoothed"] == pytest.approx((brevity, brevity, brevity, 0))
    # one of two unigrams, no bigram of one: smoothed 1 / (2 * 1)
    scores = corpus_bleu(["the dog"], ["the cat"])
    assert scores["unsmoothed"][:2] == pytest.approx((0.5, 0))
    assert scores["smoothed"][:2] == pytest.approx((0.5, (0.5 * 0.5) ** 0.5))


@pytest.mark.parametrize("table, method", CORPUS_SMOOTHING.items())
def test_the_corpus_is_scored_as_sacrebleu_scores_it(table, method):
    """Every order by a metric of that order, which counts again."""
    answers, references = [*ANSWERS, "gout flu"], [*REFERENCES, "flu"]
    for n in (1, 2, 3, 4):
        metric = sacrebleu.metrics.BLEU(max_ngram_order=n, smooth_method=method, tokenize="13a")
        expected = metric.corpus_score(answers, [references]).score / 100
        assert 0 < expected < 1
        assert corpus_bleu(answers, references)[table][n - 1] == pytest.approx(expected)
    assert corpus_signature(table) == metric.get_signature().format()


def test_the_corpus_is_no_mean_of_sentences():
    pairs = zip(ANSWERS, REFERENCES, strict=True)
    mean = sum(sentence_bleu(*pair)["unsmoothed"][0] for pair in pairs) / len(ANSWERS)
    assert abs(corpus_bleu(ANSWERS, REFERENCES)["unsmoothed"][0] - mean) > 0.02


def test_an_empty_answer_is_worth_nothing():
    reference = "Gout is a disease"
    for scores in (sentence_bleu("", reference), corpus_bleu([""], [reference])):
        assert all(values == (0, 0, 0, 0) for values in scores.values())
    some = corpus_bleu(["", *ANSWERS], [reference, *REFERENCES])
    assert 0 < some["smoothed"][3] < corpus_bleu(ANSWERS, REFERENCES)["smoothed"][3]


def test_signatures_say_all_that_decides():
    seed = sentence_signature("method7")
    for word in ("nltk.sentence_bleu", "mean", "case:mixed", "tok:str.split", "smooth:method7"):
        assert word in seed
    form = r"nrefs:1\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:[\d.]+"
    assert re.fullmatch(form, corpus_signature("smoothed"))
