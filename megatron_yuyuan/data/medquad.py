"""Questions and answers from MedQuAD's XML: cleaned, no repeats, divided so that nothing leaks."""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lxml import etree

from megatron_yuyuan.data.jsonl import bad_line, read_json_lines, string_of
from megatron_yuyuan.data.medquad_answers import clean_answer, clean_lines, clean_text
from megatron_yuyuan.data.question_lines import parse_question_line
from megatron_yuyuan.data.xml_elements import read_elements, text_of
from megatron_yuyuan.errors import DataError

SPLITS = ("train", "valid", "test")
DOCUMENTS = ("Document", "DiseaseFile", "doc")
"""Elements that hold a page: the usual one, one CDC file's, and four NINDS files' in lower case."""


@dataclass(frozen=True)
class QuestionAnswer:
    """One question, its answer, and where it comes from. `focus` is what the page is about.

    A question is one line. An answer may be several; those of a list begin with `- `.
    """

    question: str
    answer: str
    focus: str = ""
    source: str = ""
    document_id: str = ""
    qtype: str = ""


def read_medquad(path: str | Path, dropped: Counter | None = None) -> Iterator[QuestionAnswer]:
    """Yield the cleaned pairs of one XML file, or of all .xml files under a folder in sorted order.

    `dropped` counts, by reason, pages without a pair, pairs without question or answer, answers that
    are links and nothing else, exact repeats. An answer under several questions stays under each:
    that one pattern of inheritance holds for 348 diseases is knowledge. Raises DataError (missing,
    empty, not well-formed, no page at all in the file or folder) and UnsafeError (entity
    declarations). Source: Ben Abacha and Demner-Fushman 2019, https://github.com/abachaa/MedQuAD
    """
    dropped, files = Counter() if dropped is None else dropped, [Path(path)]
    if files[0].is_dir():
        files = sorted(files[0].rglob("*.xml"))
    before, found = dropped.total(), False
    for pair in drop_repeats(
        (pair for file in files for pair in _read_file(file, dropped)), dropped
    ):
        found = True
        yield pair
    if not found and dropped.total() == before:
        raise DataError(
            f"{path}: no page of questions in it",
            "MedQuAD's files hold Document elements",
            "a MedQuAD file or the folder that holds them",
        )


def drop_repeats(pairs: Iterable[QuestionAnswer], dropped: Counter) -> Iterator[QuestionAnswer]:
    """The pairs less those whose question and answer both came before."""
    seen: set[tuple[str, str]] = set()
    for pair in pairs:
        if (pair.question, pair.answer) in seen:
            dropped["exact repeat"] += 1
        else:
            seen.add((pair.question, pair.answer))
            yield pair


def _read_file(path: Path, dropped: Counter) -> Iterator[QuestionAnswer]:
    for document in read_elements(path, DOCUMENTS, lambda e: f"document {_document_id(e)}"):
        focus = text_of(_child(document, "focus", "doctitle-focus"))
        source = document.get("source") or document.get("corpus") or ""
        elements = list(document.iter("QAPair", "pair"))
        if not elements:
            dropped["page without a question"] += 1
        for element in elements:
            question, answer = _child(element, "question"), _child(element, "answer")
            asked, cleaned = clean_text(text_of(question)), clean_answer(_layout_of(answer))
            if question is not None and asked and cleaned:
                qtype = question.get("qtype", "")
                yield QuestionAnswer(asked, cleaned, focus, source, _document_id(document), qtype)
            elif asked and text_of(answer):
                dropped["answer of links alone"] += 1
            else:
                dropped["no answer" if asked else "no question"] += 1


def _layout_of(element: etree._Element | None) -> str:
    """All text in an element with its white space, which tells the lines. Empty for None."""
    return "" if element is None else "".join(element.itertext()).strip()


def _child(element: etree._Element, *names: str) -> etree._Element | None:
    """The first child of one of these names, in whatever case it is written."""
    return next((child for child in element if str(child.tag).lower() in names), None)


def _document_id(document: etree._Element) -> str:
    return document.get("id") or document.get("fid") or document.get("docid") or ""


def assign_splits(pairs: Sequence[QuestionAnswer], shares: Sequence[int] = (90, 5, 5)) -> list[str]:
    """Each pair's split, such that no question and no focus occurs in two of them.

    Pairs with the same question or the same focus (letter case and punctuation aside) form a group,
    and so on from pair to pair. A group goes as a whole where the hash of its name, the smallest of
    its questions and focuses, falls among the shares: the result depends on the set of pairs alone,
    neither on their order nor on chance.
    """
    keys = [
        [
            f"{kind}:{text}"
            for kind, text in (
                ("question", normalise(pair.question)),
                ("focus", normalise(pair.focus)),
            )
            if text
        ]
        for pair in pairs
    ]
    parent = {key: key for pair_keys in keys for key in pair_keys}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    for first, *others in filter(None, keys):
        for other in others:
            small, large = sorted((root(first), root(other)))
            parent[large] = small  # so that a root is the smallest key of its group
    return [_split_of(root(pair_keys[0]) if pair_keys else "", shares) for pair_keys in keys]


def normalise(text: str) -> str:
    """Letters and digits only, NFC, case folded: what two spellings of one question share."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFC", text).casefold()))


def _split_of(group: str, shares: Sequence[int]) -> str:
    """The split on whose share of [0, sum) the hash of the group's name falls, in integers."""
    point = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") * sum(shares) >> 64
    for split, share in zip(SPLITS, shares, strict=True):
        if point < share:
            return split
        point -= share
    raise AssertionError("the point lies below the sum of the shares")


def write_jsonl(stream: BinaryIO, pairs: Iterable[QuestionAnswer]) -> None:
    """One line a pair: {"question": ..., "answer": ...}, UTF-8."""
    for pair in pairs:
        line = json.dumps({"question": pair.question, "answer": pair.answer}, ensure_ascii=False)
        stream.write(line.encode() + b"\n")


def read_qa_jsonl(path: str | Path) -> Iterator[QuestionAnswer]:
    """Yield the pairs of a JSONL file with the keys question and answer (or Question and Answer):
    white space cleaned, lines of the answer kept. A line may be a Python dictionary too.

    Raises DataError with the line number: see `read_json_lines`; a key missing (naming those seen);
    an empty value.
    """
    for number, record in read_json_lines(path, parse_question_line):
        question, answer = (
            string_of(record, (key, key.capitalize()), path, number)
            for key in ("question", "answer")
        )
        question, answer = clean_text(question), "\n".join(clean_lines(answer.split("\n")))
        if not (question and answer):
            raise bad_line(path, number, "an empty question or answer")
        yield QuestionAnswer(question, answer)
