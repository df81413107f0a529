"""The fact judge: likelihoods, margins, verdicts, calibration, files, the heat map."""

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from tiny_run import tiny_gpt2

from megatron_yuyuan.checkpoint.model import LoadedModel
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate import likelihood
from megatron_yuyuan.evaluate.calibration import (
    _logistic,
    calibrated_report,
    fit_cutoffs,
    halves,
    macro_f1,
)
from megatron_yuyuan.evaluate.facts import (
    Cutoffs,
    Judgement,
    Question,
    judge,
    read_pubmedqa,
    read_questions,
)
from megatron_yuyuan.evaluate.heat_map import heat_map
from megatron_yuyuan.evaluate.likelihood import LikelihoodScorer, Surprise

TEXTS = ["Aspirin prevents stroke.", "Gout is painful.", "Aspirin does not prevent gout at all."]
CONTEXT = "Gout is a painful disease of the joints."


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> LoadedModel:
    """A tiny random model of 48 positions."""
    tokenizer = train_bpe(iter([*TEXTS, CONTEXT] * 3), 300)
    _, model = tiny_gpt2(tokenizer, max_position_embeddings=48, init_method_std=0.3)
    return LoadedModel(model.eval(), tokenizer, TEMPLATE, {}, tmp_path_factory.mktemp("none"))


@torch.no_grad()
def one_by_one(loaded, text: str, context: str = "") -> list[float]:
    """Log-probabilities of a text's tokens by one forward pass for each."""
    ids = loaded.tokenizer.encode(f" {text}" if context else text)
    seen = [loaded.tokenizer.eod, *(loaded.tokenizer.encode(context) if context else [])]
    found = []
    for token in ids:
        tokens = torch.tensor([seen])
        positions = torch.arange(len(seen))[None]
        logits = loaded.model(tokens, positions=positions, sample_ids=tokens[:, 0], step=0)
        found.append(logits[0, -1].log_softmax(0)[token].item())
        seen.append(token)
    return found


@pytest.mark.parametrize("logits", [1, 1 << 26], ids=["a row a batch", "one batch"])
def test_likelihoods_are_those_of_one_token_after_the_other(loaded, monkeypatch, logits):
    monkeypatch.setattr(likelihood, "LOGITS_IN_A_BATCH", logits)
    scorer, contexts = LikelihoodScorer(loaded), ["", CONTEXT, ""]
    for text, context, found in zip(
        TEXTS, contexts, scorer.surprises(TEXTS, contexts), strict=True
    ):
        expected = one_by_one(loaded, text, context)
        assert found.log_probabilities == pytest.approx(expected, abs=1e-4)
        assert found.mean == pytest.approx(np.mean(expected), abs=1e-4)
        assert "".join(found.tokens).strip() == text and not found.context_cut
    alone = scorer.surprises(TEXTS)
    assert scorer(TEXTS) == [one.mean for one in alone]
    assert abs(alone[1].mean - found.mean) > 1e-2  # the texts differ, and so does a context:
    assert abs(alone[1].mean - scorer.surprises(TEXTS, contexts)[1].mean) > 1e-2


def test_a_long_context_loses_its_beginning(loaded):
    scorer = LikelihoodScorer(loaded)
    long = f"{CONTEXT} " * 20 + CONTEXT
    [found] = scorer.surprises(TEXTS[:1], [long])
    ids = loaded.tokenizer.encode(long)
    assert found.context_cut > 0
    kept = loaded.tokenizer.decode(ids[found.context_cut :])
    assert long.endswith(kept) and len(loaded.tokenizer.encode(kept)) + len(found.tokens) == 47
    assert found.log_probabilities == pytest.approx(one_by_one(loaded, TEXTS[0], kept), abs=1e-4)


@pytest.mark.parametrize("text", ["", "gout " * 60])
def test_a_text_without_a_place_is_refused(loaded, text):
    with pytest.raises(DataError, match="a text of"):
        LikelihoodScorer(loaded)([text])


class Believer:
    """A scorer that finds texts with these words likely."""

    def __init__(self, *words: str):
        self.words, self.asked = words, []

    def __call__(self, texts):
        return [one.mean for one in self.surprises(texts)]

    def text_ids(self, text, context=""):
        return [0]

    def surprises(self, texts, contexts=()):
        self.asked += list(zip(texts, contexts or [""] * len(texts), strict=True))
        means = [-1.0 - 2 * (not any(w in text for w in self.words)) for text in texts]
        return [Surprise((text,), (mean,)) for text, mean in zip(texts, means, strict=True)]


def test_the_likelier_statement_decides():
    questions = [
        Question("Does aspirin prevent stroke?", context="A trial."),
        Question("Is gout harmless?"),
        Question("What causes gout?", "uric acid", ("cholesterol", "salt")),
        Question("What causes gout?"),
        Question("Is gout harmless?", alternatives=("Gout is a bird.",)),
    ]
    scorer = Believer("prevents", "not harmless", "Cholesterol", "bird")
    found = judge(scorer, questions)
    assert [one.margin for one in found] == [2.0, -2.0, -2.0, None, -2.0]
    assert [one.verdict(Cutoffs()) for one in found] == ["yes", "no", "no", "unsure", "no"]
    assert [one.verdict(Cutoffs(-3, 3)) for one in found] == ["unsure"] * 5
    assert found[2].statements == (
        "Uric acid causes gout.",
        "Uric acid does not cause gout.",
        "Cholesterol causes gout.",
        "Salt causes gout.",
    )
    assert found[3].refused == "it does not ask yes or no" and not found[3].statements
    assert ("Aspirin prevents stroke.", "A trial.") in scorer.asked
    assert judge(scorer, questions[3:4])[0].margin is None


@pytest.mark.parametrize(
    "long",
    [
        Question("Is gout " + "very " * 60 + "bad?"),
        Question("Is gout bad?", alternatives=("Gout is " + "very " * 60 + "bad.",)),
        Question("Does a sleep support program work " + "very " * 60 + "well?"),  # two readings
        Question("Is gout bad?", alternatives=("",)),
    ],
    ids=["question", "alternative", "reading", "empty"],
)
def test_a_statement_too_long_is_refused_and_the_others_are_judged(loaded, long):
    short = Question("Is gout painful?")
    before, refused, after = judge(LikelihoodScorer(loaded), [short, long, short])
    assert refused.margin is None and "the model scores 1 to 47 at once" in refused.refused
    assert before.margin == after.margin is not None and not before.refused


def test_a_space_before_a_text_counts(loaded):
    """The text that just fits alone has no room behind a context."""
    scorer = LikelihoodScorer(loaded)
    fits = "q" * 47
    assert len(scorer.text_ids(fits)) == 47
    with pytest.raises(DataError, match="it has 48 tokens"):
        scorer.text_ids(fits, CONTEXT)


def judged(margin: float | None, label: str, name: str = "") -> Judgement:
    question = Question("Is it so?", label=label, identifier=name)
    if margin is None:
        return Judgement(question, refused="why")
    surprises = Surprise(("x",), (margin,)), Surprise(("y",), (0.0,))
    return Judgement(question, ("a", "b"), surprises)


def test_fitted_cutoffs_are_the_best_there_are():
    rng = np.random.default_rng(1)
    labels = rng.choice(["yes", "no", "unsure"], 24, p=[0.5, 0.3, 0.2])
    centre = {"yes": 1.0, "no": -1.0, "unsure": 0.0}
    known = [judged(rng.normal(centre[label], 1.0), label) for label in labels]

    def hits(cutoffs):
        return sum(one.verdict(cutoffs) == one.question.label for one in known)

    places = sorted(one.margin + d for one in known for d in (-1e-9, 1e-9))
    pairs = itertools.combinations_with_replacement(places, 2)
    best = max(hits(Cutoffs(low, high)) for low, high in pairs)
    assert hits(fit_cutoffs([*known, judged(None, "yes")])) == best
    assert best > max(hits(Cutoffs()), list(labels).count("yes"))


def sample(separation: float, size: int = 200) -> list[Judgement]:
    rng = np.random.default_rng(3)
    labels = rng.choice(["yes", "no"], size, p=[0.6, 0.4])
    return [
        judged(rng.normal(separation if label == "yes" else -separation), label, str(i))
        for i, label in enumerate(labels)
    ]


def test_the_report_is_of_the_half_that_was_not_fitted():
    fitted, reported = halves(sample(2.0))
    report = calibrated_report(sample(2.0))
    right = [one.verdict(fit_cutoffs(fitted)) == one.question.label for one in reported]
    yes = [one.question.label == "yes" for one in reported]
    assert report.cutoffs == fit_cutoffs(fitted) != fit_cutoffs(reported)
    assert report.questions == len(reported) and 70 < len(reported) < 130
    assert report.accuracy == pytest.approx(np.mean(right)) and report.accuracy > 0.9
    assert report.majority == pytest.approx(np.mean(yes))
    half_width = 1.96 * math.sqrt(report.accuracy * (1 - report.accuracy) / len(reported))
    low, high = report.interval
    assert low < report.accuracy < high and high - low == pytest.approx(2 * half_width, rel=0.4)
    assert report.calibration_error < 0.1 and report.rewritten == 1.0 and not report.unsure
    assert "better than" in report.lines() and json.dumps(report.to_dict())
    assert calibrated_report(sample(2.0)) == report


def test_a_judge_below_the_baseline_is_reported_as_such():
    """Its margins mean yes where it was fitted, and no where it is reported."""
    inverted = []
    for half, sign in zip(halves(sample(2.0)), (1, -1), strict=True):
        inverted += [
            judged(sign * one.margin, one.question.label, one.question.identifier) for one in half
        ]
    report = calibrated_report(inverted)
    assert report.accuracy < report.majority and "WORSE than" in report.lines()
    assert report.calibration_error > 0.5


def test_refused_questions_are_answered_unsure_and_counted():
    known = sample(2.0)
    mixed = [
        judged(None, one.question.label, one.question.identifier) if i % 4 == 0 else one
        for i, one in enumerate(known)
    ]
    report, whole = calibrated_report(mixed), calibrated_report(known)
    assert report.rewritten == pytest.approx(0.75, abs=0.1) and report.unsure >= 0.15
    assert report.accuracy < whole.accuracy - 0.1 and report.questions == whole.questions


@pytest.mark.parametrize(
    "known", [[], sample(1.0)[:1], [judged(None, "yes", str(i)) for i in range(9)]]
)
def test_questions_that_give_no_halves_are_refused(known):
    with pytest.raises(DataError, match="cannot be divided into two labelled halves"):
        calibrated_report(known)
    with pytest.raises(DataError, match="cannot be divided"):
        calibrated_report([*sample(1.0), judged(1.0, "", "unlabelled")])


def test_macro_f1_by_hand():
    """yes: 2 of 3 found, 1 wrong: 4/6. no: 1 of 1, 1 wrong: 2/3. unsure: never said: 0."""
    labels = ["yes", "yes", "yes", "no", "unsure"]
    verdicts = ["yes", "yes", "no", "no", "yes"]
    assert macro_f1(labels, verdicts) == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)


def test_logistic_finds_the_probabilities_it_was_drawn_from():
    rng = np.random.default_rng(5)
    margins = rng.normal(size=4000) * 0.2
    truth = (rng.random(4000) < 1 / (1 + np.exp(-(8 * margins - 0.5)))).astype(float)
    slope, offset = _logistic(margins, truth)
    assert slope == pytest.approx(8, rel=0.15) and offset == pytest.approx(-0.5, abs=0.15)
    assert all(map(math.isfinite, _logistic(np.array([-1.0, 1.0]), np.array([0.0, 1.0]))))
    assert _logistic(np.array([]), np.array([])) == (0.0, 0.0)


def test_questions_are_read_with_all_their_keys(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"Question": "Is gout bad?"}\n\n'
        '{"question": "What is gout?", "answer": "a disease", "alternatives": ["a bird"],'
        ' "context": "C", "label": "maybe", "id": "x7"}\n'
    )
    assert list(read_questions(path)) == [
        Question("Is gout bad?", identifier="1"),
        Question("What is gout?", "a disease", ("a bird",), "C", "unsure", "x7"),
    ]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"text": "Is gout bad?"}', "line 1: no key 'question'; it has 'text'"),
        ('{"question": 7}', "line 1: 'question' is no string"),
        ('{"question": "Is it?", "alternatives": "a"}', "'alternatives' is no list of strings"),
        ('{"question": "Is it?", "label": "perhaps"}', "label 'perhaps', not yes, no or maybe"),
        ('{"question": "Is it?", "context": null}', "'context' is no string"),
        ("{'question': 'Is it?'}", "line 1"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    (tmp_path / "q.jsonl").write_text(line + "\n")
    with pytest.raises(DataError) as error:
        list(read_questions(tmp_path / "q.jsonl"))
    assert message in str(error.value)


RECORD = {"QUESTION": "Is gout bad?", "CONTEXTS": ["One.", "Two."], "final_decision": "maybe"}


def test_pubmedqa_is_read(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"12": RECORD}))
    [found] = read_pubmedqa(tmp_path / "p.json")
    assert found == Question("Is gout bad?", context="One. Two.", label="unsure", identifier="12")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is no PubMedQA file"),
        ("[1]", "is no PubMedQA file"),
        (json.dumps({"12": {"QUESTION": "x"}}), "record 12"),
        (json.dumps({"12": RECORD | {"final_decision": "so"}}), "record 12: KeyError('so')"),
        (json.dumps({"12": RECORD | {"CONTEXTS": 3}}), "record 12"),
        (json.dumps({"12": RECORD | {"CONTEXTS": "One."}}), "record 12"),
        (json.dumps({"12": RECORD | {"QUESTION": None}}), "record 12"),
    ],
)
def test_what_is_no_pubmedqa_is_refused(tmp_path, content, message):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(DataError) as error:
        read_pubmedqa(tmp_path / "p.json")
    assert message in str(error.value) and "is no PubMedQA file" in str(error.value)


def test_the_heat_map_shows_every_token_escaped_and_darker_where_it_surprises():
    surprises = (
        Surprise(("<b>", " is"), (-0.5, -6.0), context_cut=4),
        Surprise(("x", " <i>"), (-1.0, -99.0)),
    )
    asked = Question("Is <script> bad?", label="no")
    page = heat_map(
        [Judgement(asked, ("a", "b"), surprises), judged(None, "yes")], Cutoffs(), "run & co"
    )
    shades = [float(shade) for shade in re.findall(r"rgba\(214, 66, 34, ([\d.]+)\)", page)]
    assert shades == pytest.approx([0.04, 0.42, 0.07, 0.85], abs=0.01)
    for text in (
        "&lt;b&gt;",
        "&lt;i&gt;",
        "Is &lt;script&gt; bad?",
        "run &amp; co",
        "refused: why",
        "Not medical advice",
    ):
        assert text in page
    assert "<script" not in page and "<b>" not in page and 'title="-99.00"' in page
    assert "yes (margin +46.7500 nats a token), labelled no; 4 tokens of the context" in page


def test_a_statement_is_not_its_own_rival():
    """Neither an answer that is among the alternatives, nor one of a yes/no question."""
    plain, listed, answered = judge(
        Believer("prevents", "acid causes"),
        [
            Question("Does aspirin prevent stroke?"),
            Question("What causes gout?", "uric acid", ("Uric acid", "salt")),
            Question("Does aspirin prevent stroke?", "yes", ("no", "Aspirin causes stroke.")),
        ],
    )
    assert answered.statements[2:] == ("Aspirin causes stroke.",)  # a sentence is
    assert plain.margin == listed.margin == answered.margin == 2.0
    assert listed.statements[2:] == ("Salt causes gout.",)


def test_equal_margins_are_not_parted():
    known = [judged(0.0, label) for label in ("no", "yes", "yes", "yes")]
    cutoffs = fit_cutoffs(known)
    assert {one.verdict(cutoffs) for one in known} == {"yes"}
    many = [judged(float(n), "yes" if n > 7 else "no") for n in range(60_000)]
    assert fit_cutoffs(many) == Cutoffs(7.5, 7.5)  # all pairs of margins would be 29 GB
