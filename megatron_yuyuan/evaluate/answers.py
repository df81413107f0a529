"""Answers beside their references, as they lie in a JSONL file. Imports no torch.

One line an answer: {"system": ..., "question": ..., "reference": ..., "answer": ..., "scores": {...}}.
`system` names what gave the answer, model and decoding; `scores` is written for people and programs
that come later, and not read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from megatron_yuyuan.data.jsonl import bad_line, read_json_lines
from megatron_yuyuan.data.medquad import QuestionAnswer
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate.scores import Scores, score

TEXTS = ("question", "reference", "answer")
"""The keys that every line must have."""


@dataclass(frozen=True)
class Answered:
    """One question, what is known to be right, and what was said."""

    question: str
    reference: str
    answer: str


Systems = Mapping[str, Sequence[Answered]]
"""What every system said to the same questions, in the same order."""


def spread(pairs: list[QuestionAnswer], limit: int) -> list[QuestionAnswer]:
    """`limit` of the pairs (0: all), evenly over the list: MedQuAD's files stand source by source."""
    if not limit or len(pairs) <= limit:
        return pairs
    return [pairs[i * len(pairs) // limit] for i in range(limit)]


def read_predictions(path: str | Path) -> dict[str, list[Answered]]:
    """The answers of a file by system; of lines without one, the file's name is the system's.

    Raises DataError: a line that has not all TEXTS, no line at all, or systems that did not answer
    the same questions.
    """
    systems: dict[str, list[Answered]] = {}
    for number, record in read_json_lines(path):
        system = record.get("system", Path(path).stem)
        texts: list = [record.get(key) for key in TEXTS]
        if not all(isinstance(text, str) for text in (system, *texts)):
            what = f"{', '.join(TEXTS)} (and system, if given) must be strings"
            raise bad_line(path, number, f"{what}; the line has {', '.join(record) or 'no key'}")
        systems.setdefault(system, []).append(Answered(*texts))
    if not systems:
        raise DataError(
            f"no answer in {path}",
            "there is nothing to score",
            "a JSONL file as tools/evaluate_qa.py --output writes it",
        )
    _check_comparable(path, systems)
    return systems


def _check_comparable(path: str | Path, systems: Systems) -> None:
    """Raises DataError where two systems did not answer the same questions in the same order."""
    (first, answers), *others = systems.items()
    asked = [(each.question, each.reference) for each in answers]
    for system, theirs in others:
        if [(each.question, each.reference) for each in theirs] != asked:
            raise DataError(
                f"{path}: {system!r} and {first!r} did not answer the same questions in the same order",
                "scores over different pairs cannot stand in one table",
                "one file for each, and one command for each",
            )


def score_systems(systems: Systems) -> dict[str, Scores]:
    """The scores of every system."""
    return {
        system: score([each.answer for each in answers], [each.reference for each in answers])
        for system, answers in systems.items()
    }


def score_one(answered: Answered) -> Scores:
    """The scores of one pair."""
    return score([answered.answer], [answered.reference])


def write_predictions(stream: BinaryIO, systems: Systems) -> None:
    """Every answer with the scores of its pair, UTF-8; `read_predictions` gives them back."""
    for system, answers in systems.items():
        for each in answers:
            record = {"system": system} | asdict(each) | {"scores": asdict(score_one(each))}
            stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
