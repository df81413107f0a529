"""Scores: three protocols over the same pairs, in tables that say how they were made."""

import pytest
import sacrebleu

from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate.bleu import corpus_bleu, sentence_bleu
from megatron_yuyuan.evaluate.scores import (
    Scores,
    report,
    score,
    score_tables,
    signatures,
    squad_tokens,
)

ANSWERS = ["Gout is a disease of the joints .", "The flu", "I do not know ."]
REFERENCES = ["Gout is a painful disease of the joints .", "flu.", "It is a cancer of blood ."]


def test_every_value_is_that_of_its_protocol():
    scores = score(ANSWERS, REFERENCES)
    sentences = [sentence_bleu(a, r) for a, r in zip(ANSWERS, REFERENCES, strict=True)]
    for smoothing, values in scores.sentence_bleu.items():
        means = [sum(each[smoothing][n] for each in sentences) / 3 for n in range(4)]
        assert values == pytest.approx(means) and values[0] > 0
    assert scores.corpus_bleu == corpus_bleu(ANSWERS, REFERENCES)
    assert scores.chrf == pytest.approx(sacrebleu.corpus_chrf(ANSWERS, [REFERENCES]).score / 100)
    assert scores.exact_match == pytest.approx(1 / 3)  # `The flu` is `flu.` there
    # gout is disease of joints: 5 of 5, and 5 of 6; flu: all; of the last pair nothing
    assert scores.token_f1 == pytest.approx((2 * 5 / (5 + 6) + 1 + 0) / 3)
    assert scores.pairs == 3


TEN = [
    ("Gout is a disease of the joints.", "Gout is a painful disease of the joints."),
    ("Rest, and drink plenty of water.", "Rest and drink plenty of water."),
    ("", "See a doctor."),
    ("See a doctor.", "See a doctor."),
    ("It is a virus.", "Lupus is no virus but an autoimmune disease."),
    ("fever cough fever cough", "Fever, cough and a rash."),
    ("The prognosis is good.", "the prognosis is GOOD"),
    ("No.", "Yes."),
    (
        "Vaccination prevents it in 95% of cases.",
        "Vaccination prevents measles in 97% of all cases.",
    ),
    ("It is inherited; see the list below: - a - b", "It is inherited. See the list below."),
]


def test_ten_pairs_are_worth_what_nltk_and_sacrebleu_gave_them():
    """Row E10: figures of NLTK 3.9 (the empty answer counted 0) and sacreBLEU 2, written down; should a
    release of either change, these do not."""
    scores = score(*zip(*TEN, strict=True))
    expected = {
        "unsmoothed": (0.446972, 0.358487, 0.248174, 0.127528),
        "method5": (0.634003, 0.493485, 0.376247, 0.274548),
        "method7": (0.635769, 0.500283, 0.391879, 0.294765),
    }
    assert scores.sentence_bleu.keys() == expected.keys()
    for smoothing, values in expected.items():
        assert scores.sentence_bleu[smoothing] == pytest.approx(values, abs=1e-6)
    assert scores.corpus_bleu["smoothed"][3] == pytest.approx(0.319950, abs=1e-6)
    assert scores.chrf == pytest.approx(0.565299, abs=1e-6)
    assert (scores.exact_match, scores.token_f1) == pytest.approx((0.3, 0.639883), abs=1e-6)


def test_the_same_text_is_worth_one():
    scores = score(REFERENCES[:1], REFERENCES[:1])
    assert scores.exact_match == scores.token_f1 == 1 and scores.chrf == pytest.approx(1)
    assert scores.corpus_bleu["smoothed"] == pytest.approx((1, 1, 1, 1))


def test_an_empty_answer_is_worth_nothing():
    scores = score([""], ["Gout is a disease"])
    assert scores.exact_match == scores.token_f1 == scores.chrf == 0


def test_words_are_squads():
    text = "The  β-cell, an Organ's\n(a) theory!"
    assert squad_tokens(text) == ["βcell", "organs", "theory"]
    assert squad_tokens("a the .") == [] and score(["."], ["the"]).token_f1 == 1


@pytest.mark.parametrize("answers, references", [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_pairs_are_needed(answers, references):
    with pytest.raises(DataError, match="compared in pairs"):
        score(answers, references)


def test_the_report_has_every_table_under_its_protocol():
    scores = {"ours, greedy": score(ANSWERS, REFERENCES), "a|b": score(REFERENCES, REFERENCES)}
    text, tables = report(scores), score_tables(scores, signatures())
    assert text.startswith("3 pairs\n") and "its script was never published" in text
    assert len(tables) == text.count("| --- |\n") == 3 + 2 + 1
    protocol = signatures()
    for expected in (*protocol["sentence_bleu"].values(), *protocol["corpus_bleu"].values()):
        assert text.count(f"({expected}):") == 1
    assert protocol["exact_match"] in text and protocol["chrf"] in text and "nc:6" in text
    for table in tables:
        begun = text.index(f"{table.title} ({table.signature}):\n\n| system | {table.columns[0]} |")
        rows = text[begun:].split("\n")[4:6]
        assert rows[0].startswith("| ours, greedy | ") and rows[1].startswith(r"| a\|b | ")
        shown = [float(cell) for cell in rows[0].split("|")[2:-1]]
        assert shown == pytest.approx(table.rows["ours, greedy"], abs=5e-5)


def test_signatures_have_the_names_of_the_values():
    assert {*signatures(), "pairs"} == set(Scores.__dataclass_fields__)
