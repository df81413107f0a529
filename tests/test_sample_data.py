"""The quickstart's data is what its generator writes, and holds what its README promises."""

import importlib.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

SAMPLE_DATA = Path(__file__).parents[1] / "examples" / "sample_data"
BOUNDS = {
    "pubmed_sample.xml": 600_000,
    "medquad_train.xml": 150_000,
    "medquad_held_out.xml": 75_000,
}


def load_facts():
    """facts.py under a name of its own: `facts` may be another module of another test."""
    spec = importlib.util.spec_from_file_location("sample_data_facts", SAMPLE_DATA / "facts.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


facts = load_facts()


def parse(name: str) -> ElementTree.Element:
    return ElementTree.parse(SAMPLE_DATA / name).getroot()


def pairs(name: str) -> list[tuple[str, str, str]]:
    """(qid, question, answer) of a MedQuAD file."""
    found = []
    for pair in parse(name).iter("QAPair"):
        question = pair.find("Question")
        found.append((question.get("qid"), question.text, pair.findtext("Answer")))
    return found


def sentences() -> list[str]:
    """Every sentence of every abstract, without its markup."""
    texts = ("".join(each.itertext()) for each in parse("pubmed_sample.xml").iter("AbstractText"))
    return [each for text in texts for each in re.split(r"(?<=\.) ", text)]


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample_data")
    command = [sys.executable, "-B", SAMPLE_DATA / "generate.py", "--output-dir", folder]
    subprocess.run(command, check=True, cwd=folder)
    return folder


def test_the_generator_writes_three_files_and_leaves_nothing_else(generated):
    assert {path.name for path in generated.iterdir()} == set(BOUNDS)


@pytest.mark.parametrize("name", BOUNDS)
def test_the_committed_file_is_what_the_generator_writes_now(generated, name):
    committed = (SAMPLE_DATA / name).read_bytes()
    assert committed == (generated / name).read_bytes(), "run examples/sample_data/generate.py"
    assert len(committed) < BOUNDS[name]


def test_the_table_is_consistent():
    keys = Counter((fact.relation.name, fact.subject) for fact in facts.FACTS)
    assert max(keys.values()) == 1
    assert [fact.number for fact in facts.FACTS] == list(range(len(facts.FACTS)))
    for relation in facts.RELATIONS:
        assert len(set(relation.questions)) == facts.WORDINGS
        assert len({relation.answer, *relation.statements}) == 1 + len(relation.statements)
        assert len(relation.statements) >= 4  # fewer would repeat a sentence within the 13 rounds
    for theme in facts.THEMES:
        assert sum(fact.theme == theme for fact in facts.FACTS) >= 3, theme
    assert {fact.theme for fact in facts.FACTS} == set(facts.THEMES)


@pytest.mark.parametrize("fact", facts.FACTS, ids=lambda fact: fact.answer)
def test_sentences_are_short_whole_and_agree_with_their_article(fact):
    composed = [fact.compose(template) for template in fact.relation.statements] + [fact.answer]
    for text in composed + fact.questions:
        assert text[0].isupper() and text[-1] in ".?" and "{" not in text and "  " not in text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|^A [aeiou]|^An [^aeiou]", text), text
    for text in composed:
        assert fact.subject.casefold() in text.casefold()
        assert fact.object.casefold() in text.casefold()
    assert all(fact.subject.casefold() in question.casefold() for question in fact.questions)
    # A model with sequences of 64 tokens must see a question and its answer whole.
    words = max(len(question.split()) for question in fact.questions) + len(fact.answer.split())
    assert 6 <= len(fact.answer.split()) <= 14 and words <= 28


def test_every_fact_is_asked_in_four_wordings_and_exactly_one_is_held_out():
    train, held_out = pairs("medquad_train.xml"), pairs("medquad_held_out.xml")
    assert len(train) == 3 * len(facts.FACTS) and len(held_out) == len(facts.FACTS)
    answers = {(question.replace(" ?", "?"), answer) for _, question, answer in train + held_out}
    for fact, (_, question, answer) in zip(facts.FACTS, held_out, strict=True):
        assert question.replace(" ?", "?") == fact.questions[fact.number % 4]
        assert answer == fact.answer
        assert all((each, fact.answer) in answers for each in fact.questions)
    assert len(answers) == 4 * len(facts.FACTS)
    assert len({qid for qid, _, _ in train + held_out}) == 4 * len(facts.FACTS)


def test_no_held_out_question_is_in_the_training_file():
    train = (SAMPLE_DATA / "medquad_train.xml").read_text(encoding="utf-8").casefold()
    for _, question, answer in pairs("medquad_held_out.xml"):
        assert f">{question.casefold()}<" not in train
        assert f">{answer.casefold()}<" in train  # the fact itself is taught


def test_no_question_has_two_answers():
    questions = Counter(
        question.casefold()
        for name in ("medquad_train.xml", "medquad_held_out.xml")
        for _, question, _ in pairs(name)
    )
    assert max(questions.values()) == 1
    assert all(question.endswith(" ?") for question in questions)


def test_every_fact_is_stated_at_least_six_times_in_different_words():
    lowered = [sentence.casefold() for sentence in sentences()]
    for fact in facts.FACTS:
        templates = fact.relation.statements
        stated = [fact.compose(template).casefold() for template in templates]
        found = [each for each in lowered if each.endswith(tuple(stated))]
        assert len(found) >= 6 and len(set(found)) == len(found), fact.answer
        assert {each for each in stated if any(one.endswith(each) for one in found)} == set(stated)


def test_every_sentence_of_an_abstract_states_a_fact():
    """Nothing else is said: the records pretend to no methods and no patients."""
    known = tuple(
        fact.compose(template).casefold()
        for fact in facts.FACTS
        for template in fact.relation.statements
    )
    assert [each for each in sentences() if not each.casefold().endswith(known)] == []


def test_the_pubmed_file_has_the_shape_of_pubmeds():
    root = parse("pubmed_sample.xml")
    assert root.tag == "PubmedArticleSet" and 350 <= len(root) <= 450
    for article in root:
        citation = article.find("MedlineCitation")
        assert citation.get("Status") and citation.get("Owner")
        assert citation.find("PMID").get("Version") == "1"
        assert citation.findtext("PMID") == article.findtext("PubmedData/ArticleIdList/ArticleId")
        assert int(citation.findtext("PMID")) > 99_000_000
        for path in ("Journal/Title", "ArticleTitle", "Abstract/AbstractText", "Language"):
            assert citation.find(f"Article/{path}") is not None, path
        assert citation.find("Article/PublicationTypeList/PublicationType") is not None
    assert len({article.findtext("MedlineCitation/PMID") for article in root}) == len(root)
    abstracts = {"".join(each.itertext()) for each in root.iter("Abstract")}
    assert len(abstracts) == len(root)


def test_some_records_are_labelled_and_some_carry_markup():
    root = parse("pubmed_sample.xml")
    for path in ("Abstract/AbstractText[@Label]", "Abstract/AbstractText/i", "ArticleTitle/sub"):
        with_it = [
            each for each in root if each.find(f"MedlineCitation/Article/{path}") is not None
        ]
        assert 0 < len(with_it) < len(root) / 2, path
