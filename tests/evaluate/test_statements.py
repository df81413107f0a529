"""The rewriter of questions: what it says to labelled ones, and what it refuses."""

import csv
import hashlib
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate import english
from megatron_yuyuan.evaluate.statements import HAND_JUDGED, readings, rewrite

HERE = Path(__file__).parent
REFUSED = ("", "")


def labelled() -> list[dict[str, str]]:
    with open(HERE / "questions.tsv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def held_out(row: dict[str, str]) -> bool:
    """The test part: nobody tunes a rule on these."""
    return hashlib.sha256(row["question"].encode()).digest()[0] % 3 == 0


def said(row: dict[str, str]) -> tuple[str, str]:
    try:
        both = rewrite(row["question"], row["answer"])
    except DataError:
        return REFUSED
    return both.affirmative, both.negative


def right(row: dict[str, str], found: tuple[str, str]) -> bool:
    return found == (row["affirmative"], row["negative"])


def test_the_labelled_questions_cover_every_pattern():
    rows = labelled()
    patterns = Counter(row["pattern"] for row in rows)
    assert len(rows) >= 300 and min(patterns.values()) >= 5
    assert len({(row["question"], row["answer"]) for row in rows}) == len(rows)
    assert 0.25 < sum(map(held_out, rows)) / len(rows) < 0.45


@pytest.mark.parametrize("pattern", sorted({row["pattern"] for row in labelled()}))
def test_the_questions_the_rules_were_made_with_are_rewritten(pattern):
    for row in labelled():
        if row["pattern"] == pattern and not held_out(row):
            assert right(row, said(row)), row["question"]


def test_of_the_held_out_questions_95_percent_are_exact():
    """The total alone is looked at. A rewriter that takes the first word for the subject reaches
    half as many."""
    rows = [row for row in labelled() if held_out(row)]
    exact = sum(right(row, said(row)) for row in rows)
    assert exact / len(rows) >= 0.95

    def one_word_subject(row):
        auxiliary, subject, *rest = [*row["question"].rstrip("?").split(), "", ""]
        told = " ".join([auxiliary.lower(), *rest]).strip()
        return f"{subject.capitalize()} {told}.", f"{subject.capitalize()} {told} not."

    assert sum(right(row, one_word_subject(row)) for row in rows) / len(rows) < 0.5


def judged_by_hand(name: str = "judged_statements.jsonl") -> list[dict[str, str]]:
    """The ids and verdicts; the questions stay with the data sets they belong to."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_two_hundred_were_judged_by_hand():
    rows = judged_by_hand()
    wrong = [row for row in rows if row["verdict"] == "wrong"]
    assert (len(wrong), len(rows)) == HAND_JUDGED == (5, 200)
    assert len({(row["set"], row["id"]) for row in rows}) == 200
    assert {row["verdict"] for row in rows} == {"right", "wrong"}
    assert all(row["why"] for row in wrong)
    assert len(wrong) / len(rows) <= 0.03


def digest(affirmative: str, negative: str) -> str:
    return hashlib.sha256(f"{affirmative}\n{negative}".encode()).hexdigest()[:16]


def questions_of(real_data: Path) -> dict[str, dict[str, str]]:
    """Set -> id -> question, of the files that the two hundred were drawn from."""
    pqal = json.loads((real_data / "pubmedqa" / "pqal_dev500.json").read_text())
    bioasq = json.loads((real_data / "pubmedqa" / "bioasq_yesno_7b-9b.json").read_text())
    return {
        "PubMedQA": {name: record["QUESTION"] for name, record in pqal.items()},
        "BioASQ": {record["id"]: record["question"] for record in bioasq},
    }


def in_the_order_of_places(rows: list[dict[str, str]], seed: int) -> list[tuple[str, str]]:
    """(set, id) by the place that a seed gives each among the 267 that three samples had left."""
    places = random.Random(seed).sample(range(267), len(rows))
    drawn = zip(places, ((row["set"], row["id"]) for row in rows), strict=True)
    return [key for _, key in sorted(drawn)]


def test_the_two_hundred_are_the_draw_of_seed_9():
    """The draw was from a list sorted by set and id: put at the places of the seed, the rows of the
    file, in their order, are sorted. A row left out, moved or exchanged for a distant one breaks that.

    Which questions were the other 67 depended on the rules of that day, so they are not drawn anew."""
    rows = judged_by_hand()
    keys = sorted((row["set"], row["id"]) for row in rows)
    assert in_the_order_of_places(rows, seed=9) == keys
    assert in_the_order_of_places(rows, seed=8) != keys
    assert in_the_order_of_places([*rows[1:], rows[0]], seed=9) != keys


def test_the_list_they_were_drawn_from_fits_the_real_files(real_data):
    """Between two that were drawn there are as many questions as their places leave out, or more."""
    asked = sorted((name, one) for name, ids in questions_of(real_data).items() for one in ids)
    drawn = [asked.index(key) for key in in_the_order_of_places(judged_by_hand(), seed=9)]
    places = sorted(random.Random(9).sample(range(267), 200))
    ends = [-1, *places, 267], [-1, *drawn, len(asked)]
    assert all(b - a <= y - x for (a, b), (x, y) in zip(*map(pairwise, ends), strict=True))


def test_what_was_judged_right_is_still_said(real_data):
    """And nine in ten of the questions of both sets are rewritten."""
    questions = questions_of(real_data)
    for asked in questions.values():
        found = [said({"question": question, "answer": ""}) for question in asked.values()]
        assert sum(both != REFUSED for both in found) / len(found) >= 0.9
    for row in judged_by_hand():
        found = said({"question": questions[row["set"]][row["id"]], "answer": ""})
        same = digest(*found) == row["statements_sha256"]
        assert same == (row["verdict"] == "right"), found


def test_another_two_hundred_are_the_draw_of_seed_10(real_data):
    """Of all questions of both sets, until 200 were rewritten; the statements are those that were read."""
    rows, questions = judged_by_hand("judged_again.jsonl"), questions_of(real_data)
    asked = sorted((name, one) for name, ids in questions.items() for one in ids)
    drawn = random.Random(10).sample(asked, len(asked))[: len(rows)]
    assert [(row["set"], row["id"]) for row in rows] == drawn
    assert Counter(row["verdict"] for row in rows) == {"right": 197, "wrong": 3, "refused": 9}
    for row in rows:
        found = said({"question": questions[row["set"]][row["id"]], "answer": ""})
        if row["verdict"] == "refused":
            assert found == REFUSED
        else:
            assert digest(*found) == row["statements_sha256"], found


def test_a_scorer_chooses_among_readings():
    question = "Does a sleep support program work?"
    texts = [reading.affirmative for reading in readings(question)]
    assert texts == ["A sleep support program works.", "A sleep supports program work."]
    assert rewrite(question).affirmative == texts[0]
    for favourite in texts:
        chosen = rewrite(question, scorer=lambda seen, f=favourite: [float(t == f) for t in seen])
        assert chosen.affirmative == favourite


@pytest.mark.parametrize(
    "question, answer, texts",
    [
        (
            "Why does a sleep support program work?",
            "it helps",
            [
                "A sleep support program works because it helps.",
                "A sleep supports program work because it helps.",
            ],
        ),
        (
            "Why are patients treated with aspirin at risk?",
            "they bleed",
            [
                "Patients treated with aspirin are at risk because they bleed.",
                "Patients are treated with aspirin at risk because they bleed.",
            ],
        ),
        (
            "Which blood test results mean liver damage?",
            "high ALT",
            ["High ALT results mean liver damage.", "High ALT means liver damage."],
        ),
        (
            "What increases cause falls?",
            "weight",
            ["Weight causes falls.", "Weight increases cause falls."],
        ),
        ("Which blood tests are useful?", "PSA", ["PSA is useful."]),
        ("What causes stress in children?", "noise", ["Noise causes stress in children."]),
        ("What helps patients do well?", "rest", ["Rest helps patients do well."]),
        ("Which hormone inhibits sleep?", "orexin", ["Orexin inhibits sleep."]),
        ("Which of the following is true?", "this", ["This is true."]),
        ("Which gene expressed in bone causes rickets?", "PHEX", ["PHEX causes rickets."]),
        ("What percentage of patients relapse?", "30%", ["30% of patients relapse."]),
        ("Which share of gout is hereditary?", "half", ["Half of gout is hereditary."]),
    ],
)
def test_the_readings_of_a_wh_question_are_offered(question, answer, texts):
    """The likeliest by the rules first."""
    assert [reading.affirmative for reading in readings(question, answer)] == texts
    for favourite in texts:
        chosen = rewrite(question, answer, lambda seen, f=favourite: [float(t == f) for t in seen])
        assert chosen.affirmative == favourite


def test_a_scorer_is_not_asked_where_there_is_one_reading():
    def never(texts):
        raise AssertionError(texts)

    assert rewrite("Is gout painful?", scorer=never).negative == "Gout is not painful."


@pytest.mark.parametrize(
    "question, answer, why",
    [
        ("", "", "there is no question in it"),
        ("Aspirin prevents stroke.", "", "there is no question in it"),
        ("Is gout bad? Is flu bad?", "", "more than one question"),
        ("Is the test good, and if so, for whom?", "", "more than one question"),
        ("Do you know what causes gout?", "", "what the person asked can say"),
        ("Is gout acute or chronic?", "", "which of several is right"),
        ("Gout works, doesn't it?", "", "was not asked plainly"),
        ("Gout and flu?", "", "does not open as a question"),
        ("Gout: a role in flu?", "", "does not open as a question"),
        ("Is it?", "", "subject or predicate is missing"),
        ("Is gout not?", "", "subject or predicate is missing"),
        ("Does it ever?", "", "predicate is missing"),
        ("Do they yet?", "", "predicate is missing"),
        ("Can the zorp blick?", "", "where subject and predicate meet"),
        ("What causes gout?", "", "it does not ask yes or no"),
        ("What about gout?", "uric acid", "it names no subject and predicate"),
        ("Whose gout is it?", "mine", "where the candidate answer belongs"),
        ("How many chambers are?", "four", "where the candidate answer belongs"),
        ("What does the cat eat?", "The cat eats fish.", "only a phrase has a place"),
    ],
)
def test_refusals_say_what_why_and_what_to_try(question, answer, why):
    with pytest.raises(DataError) as refused:
        rewrite(question, answer)
    assert refused.value.what.startswith("cannot turn ") and why in refused.value.why
    assert refused.value.remedy


@pytest.mark.parametrize(
    "question, word",
    [
        ("Does no drug help?", "no"),
        ("DOES NO DRUG HELP?", "no"),
        ("Does aspirin work in no patients?", "no"),
        ("Doesn't no drug help?", "no"),
        ("Is malaria no longer endemic?", "no"),
        ("Does aspirin have no effect on stroke?", "no"),
        ("Is aspirin of no use?", "no"),
        ("Do none of the patients relapse?", "none"),
        ("Does nobody with HIV survive?", "nobody"),
        ("Is nothing known about ALS?", "nothing"),
        ("Is there neither a cure nor a vaccine?", "neither"),
        ("Is little known about ALS?", "little"),
        ("Are very few drugs safe in pregnancy?", "few"),
        ("Statins in sepsis: do they never help?", "never"),
        ("Does a patient who smokes never recover?", "never"),
        ("Is gout rarely fatal?", "rarely"),
        ("Is gout seldom fatal?", "seldom"),
        ("Does gout hardly ever affect women?", "hardly"),
        ("Is aspirin not only an analgesic but also an anticoagulant?", "not only"),
        ("Is not only aspirin effective?", "not only"),
        ("Does aspirin often not work?", "not"),
        ("Does aspirin don't help?", "don't"),
        ("Is ALS cannot be cured?", "cannot"),
        ("Which drug never causes bleeding?", "never"),
        ("Why is aspirin not safe?", "not"),
        ("Why doesn’t aspirin help?", "doesn't"),
    ],
)
def test_what_denies_already_is_refused_by_its_word(question, word):
    """Denied once more it would be `No drug does not help`."""
    with pytest.raises(DataError) as refused:
        rewrite(question, "salt" if question.startswith("W") else "")
    assert refused.value.why == f"its `{word}` would be denied once more"
    assert refused.value.remedy == f"a question and an answer without `{word}`"


def test_a_denial_for_an_answer_is_refused():
    with pytest.raises(DataError, match="its `nothing` would be denied once more"):
        rewrite("What cures ALS?", "nothing")


@pytest.mark.parametrize(
    "question, negative",
    [
        ("Do patients with no symptoms relapse?", "Patients with no symptoms do not relapse."),
        ("Do patients who never smoked relapse?", "Patients who never smoked do not relapse."),
        ("Is a rarely used drug safe?", "A rarely used drug is not safe."),
        ("Is it known whether no drug helps?", "It is not known whether no drug helps."),
        ("Does NO synthase inhibition help?", "NO synthase inhibition does not help."),
        ("Is it safe, yes or no?", "It is not safe."),
        ("Are not all patients alike?", "Not all patients are alike."),
    ],
)
def test_a_denial_that_only_describes_is_no_hindrance(question, negative):
    assert rewrite(question).negative == negative


def test_a_symbol_is_no_adverb():
    assert english.is_adverb("no") and not english.is_adverb("NO")
    with pytest.raises(DataError, match="where subject and predicate meet"):
        rewrite("Does inhaled NO improve survival?")  # not `Inhaled does not NO improve survival`


def test_adverbs_before_the_verb_of_a_wh_question_are_said():
    both = rewrite("Which drug most often causes bleeding?", "salt")
    assert both.affirmative == "Salt most often causes bleeding."
    assert rewrite("Which of both causes gout?", "salt").affirmative == "Salt causes gout."
    with pytest.raises(DataError, match="where the candidate answer belongs"):
        rewrite("Which patients who smoked get cancer?", "men")  # not `Men smoked get cancer`


def test_any_words_are_rewritten_or_refused():
    """Never another exception, whatever stands in a question."""
    rng, rows = random.Random(0), labelled()
    words = sorted({word for row in rows for word in row["question"].rstrip("?").split()})
    outcomes = Counter()
    for _ in range(3000):
        row = rng.choice(rows)
        known = row["question"].rstrip("?").split()
        drawn = rng.choice([known[: rng.randrange(len(known) + 1)], rng.sample(words, 5)])
        outcomes[said({"question": " ".join(drawn) + "?", "answer": row["answer"]}) == REFUSED] += 1
    assert min(outcomes[True], outcomes[False]) > 300


@pytest.mark.parametrize(
    "base, third, past",
    [
        ("carry", "carries", "carried"),
        ("cross", "crosses", "crossed"),
        ("stop", "stops", "stopped"),
        ("lead", "leads", "led"),
        ("have", "has", "had"),
        ("go", "goes", "went"),
        ("Influence,", "Influences,", "Influenced,"),
        ("REDUCE", "REDUCES", "REDUCED"),
    ],
)
def test_verbs_are_inflected(base, third, past):
    assert (english.third_person(base), english.past_tense(base)) == (third, past)
    assert english.base_form(third) == (english.bare(base), "does")
    assert english.base_form(past) == (english.bare(base), "did")


@pytest.mark.parametrize(
    "phrase, plural",
    [
        ("statins", True),
        ("diabetes", False),
        ("the risk of falls", False),
        ("patients treated with aspirin", True),
        ("the elderly", True),
        ("calcium and vitamin D", True),
        ("aspirin or ibuprofen", None),
        ("every patient", False),
        ("most of the patients", True),
        ("pharmacokinetics", False),
    ],
)
def test_the_number_of_a_phrase(phrase, plural):
    assert english.is_plural_phrase(phrase.split()) is plural


@pytest.mark.parametrize("subject", ["(18)F-FDG PET/CT", "(99m)Tc scintigraphy", "(n-3) fat"])
def test_a_subject_may_begin_with_a_bracket(subject):
    assert rewrite(f"Is {subject} useful?").affirmative == f"{subject} is useful."


def test_whom_it_means_may_be_described():
    both = rewrite("Does everyone with HPV get cancer?")
    assert both.affirmative == "Everyone with HPV gets cancer."
    assert both.negative == "Not everyone with HPV gets cancer."
    assert rewrite("Is everyone at risk?").affirmative == "Everyone is at risk."


def test_what_something_does_is_a_verb():
    both = rewrite("What does aspirin do?", "inhibits COX")
    assert both.affirmative == "Aspirin inhibits COX."
    assert both.negative == "Aspirin does not inhibit COX."
    with pytest.raises(DataError):
        rewrite("What does aspirin do?", "nothing")
