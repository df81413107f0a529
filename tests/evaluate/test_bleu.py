"""BLEU: known values, the same as sacrebleu and NLTK, nothing for nothing, the protocol beside the
number."""

import pytest
import sacrebleu

from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate.bleu import bleu_table, score

HYPOTHESES = [
    "Gout is a disease of the joints .",
    "Take rest and drink plenty of water daily .",
    "I do not know .",
]
REFERENCES = [
    "Gout is a painful disease of the joints .",
    "Rest and drink plenty of water .",
    "It is a cancer of blood .",
]


def test_the_same_text_is_worth_one():
    scores = score(REFERENCES, REFERENCES)
    assert scores.exact_match == 1 and scores.pairs == 3
    for table in ("unsmoothed", "smoothed"):
        assert scores.bleu[table] == pytest.approx((1, 1, 1, 1))


def test_golden_values_by_hand():
    """the cat sat / the cat sat down: all 1- to 3-grams match, no 4-gram there; brevity exp(1 -
    4/3)."""
    brevity = 2.718281828459045 ** (1 - 4 / 3)
    scores = score(["the cat sat"], ["the cat sat down"])
    assert scores.bleu["unsmoothed"] == pytest.approx((brevity, brevity, brevity, 0))
    # one of two unigrams, no bigram of one: smoothed 1 / (2 * 1)
    scores = score(["the dog"], ["the cat"])
    assert scores.bleu["unsmoothed"][:2] == pytest.approx((0.5, 0))
    assert scores.bleu["smoothed"][:2] == pytest.approx((0.5, (0.5 * 0.5) ** 0.5))


def test_an_empty_answer_is_worth_nothing():
    scores = score([""], ["Gout is a disease"])
    assert (
        scores.bleu["unsmoothed"] == scores.bleu["smoothed"] == (0, 0, 0, 0)
        and scores.exact_match == 0
    )
    some = score(["", *HYPOTHESES], ["Gout is a disease", *REFERENCES])
    assert 0 < some.bleu["smoothed"][3] < score(HYPOTHESES, REFERENCES).bleu["smoothed"][3]


def test_four_grams_are_sacrebleus():
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score / 100
    assert 0 < expected < 1
    assert score(HYPOTHESES, REFERENCES).bleu["smoothed"][3] == pytest.approx(expected)


def test_unsmoothed_is_nltks_corpus_bleu():
    from nltk.translate.bleu_score import corpus_bleu

    references, hypotheses = (
        [[text.split()] for text in REFERENCES],
        [text.split() for text in HYPOTHESES],
    )
    expected = [corpus_bleu(references, hypotheses, weights=(1 / n,) * n) for n in (1, 2, 3, 4)]
    assert 0 < expected[3] < expected[0] < 1
    assert score(HYPOTHESES, REFERENCES).bleu["unsmoothed"] == pytest.approx(expected)


def test_exact_match_ignores_white_space_alone():
    assert score([" Gout  is\n", "gout is"], ["Gout is", "Gout is"]).exact_match == 0.5


def test_the_tables_say_how_they_were_made():
    text = bleu_table({"tiny": score(HYPOTHESES, REFERENCES)}, "greedy, max_new_tokens 64")
    unsmoothed, smoothed = text.split("\n\nsmoothed ")
    assert unsmoothed.startswith(
        "unsmoothed (corpus BLEU, sacrebleu nrefs:1|case:mixed|eff:no|tok:13a|smooth:none|"
    )
    assert f"version:{sacrebleu.__version__}; 3 pairs; greedy, max_new_tokens 64" in unsmoothed
    assert "smooth:exp" in smoothed
    for table in (unsmoothed, smoothed):
        header, _, row = table.split("\n\n")[1].split("\n")
        assert header == "| model | 1-gram | 2-gram | 3-gram | 4-gram |"
        values = [float(cell) for cell in row.split("|")[2:-1]]
        assert (
            row.startswith("| tiny |")
            and len(values) == 4
            and values == sorted(values, reverse=True)
        )


@pytest.mark.parametrize("hypotheses, references", [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_pairs_are_needed(hypotheses, references):
    with pytest.raises(DataError, match="compared in pairs"):
        score(hypotheses, references)
