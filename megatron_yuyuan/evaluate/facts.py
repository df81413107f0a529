"""Is it so? The affirmative or the negative statement of a question, whichever a model finds likelier.

    margin = mean log-likelihood of the affirmative - that of its likeliest rival (nats a token)

Rivals are the negative statement and the statements of alternatives. A margin above one cutoff is
yes, below another no, between them unsure. The cutoffs come from calibration.py: the statements
differ in length and in how common `not` is, so that 0 is no natural border. Source of the idea: the
model card of Yuyuan-GPT2-3.5B, whose own rewriter, threshold and test set were not published.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_yuyuan.data.files import open_input
from megatron_yuyuan.data.jsonl import bad_line, read_json_lines, string_of
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate.likelihood import LikelihoodScorer, Surprise
from megatron_yuyuan.evaluate.statements import is_yes_no, rewrite

YES, NO, UNSURE = "yes", "no", "unsure"
LABELS = {"yes": YES, "no": NO, "maybe": UNSURE, "unsure": UNSURE}
"""Labels of files -> verdicts."""


@dataclass(frozen=True)
class Question:
    """One question, and what may come with it."""

    text: str
    answer: str = ""
    """Candidate answer of a wh-question."""
    alternatives: tuple[str, ...] = ()
    """Other answers, or whole statements beside a yes/no question."""
    context: str = ""
    """A passage to judge by; empty for closed book."""
    label: str = ""
    """The right verdict, where it is known."""
    identifier: str = ""


@dataclass(frozen=True)
class Cutoffs:
    """Margins above `yes` are yes, up to and including `no` no, between them unsure."""

    no: float = 0.0
    yes: float = 0.0

    def verdict(self, margin: float) -> str:
        """yes, no or unsure."""
        return YES if margin > self.yes else NO if margin <= self.no else UNSURE


@dataclass(frozen=True)
class Judgement:
    """A question, its statements as the model reads them, and the margin between them."""

    question: Question
    statements: tuple[str, ...] = ()
    """Affirmative, negative, then the alternatives; none where the question was refused."""
    surprises: tuple[Surprise, ...] = ()
    refused: str = ""
    """Why no statement of it was judged."""

    @property
    def margin(self) -> float | None:
        """How much likelier the affirmative is than its likeliest rival; None: refused."""
        if self.refused:
            return None
        affirmative, *rivals = (surprise.mean for surprise in self.surprises)
        return affirmative - max(rivals)

    def verdict(self, cutoffs: Cutoffs) -> str:
        """A refused question is answered unsure."""
        return UNSURE if self.margin is None else cutoffs.verdict(self.margin)


def judge(scorer: LikelihoodScorer, questions: Sequence[Question]) -> list[Judgement]:
    """Every question with its margin; one that cannot be judged is refused, not skipped."""
    judgements = [_state(question, scorer) for question in questions]
    texts = [text for one in judgements for text in one.statements]
    contexts = [one.question.context for one in judgements for _ in one.statements]
    surprises = iter(scorer.surprises(texts, contexts) if texts else [])
    return [
        replace(one, surprises=tuple(next(surprises) for _ in one.statements)) for one in judgements
    ]


def _state(question: Question, scorer: LikelihoodScorer) -> Judgement:
    try:
        return Judgement(question, statements_of(question, scorer))
    except DataError as error:
        return Judgement(question, refused=error.why)


def statements_of(question: Question, scorer: LikelihoodScorer) -> tuple[str, ...]:
    """Affirmative, negative, then the alternatives that are neither.

    Raises DataError: the question cannot be rewritten; a statement is longer than the model's positions.
    """
    both = rewrite(question.text, question.answer, scorer)
    if is_yes_no(question.text):  # its rivals are sentences themselves
        others = [o for o in question.alternatives if o.strip(" .").lower() not in LABELS]
    else:
        rivals = [rewrite(question.text, other, scorer) for other in question.alternatives]
        others = [rival.affirmative for rival in rivals]
    own = (both.affirmative, both.negative)
    statements = (*own, *(other for other in others if other not in own))  # none is its own rival
    for statement in statements:
        scorer.text_ids(statement, question.context)  # raises for one that is too long
    return statements


def read_questions(path: str | Path) -> Iterator[Question]:
    """Yield the questions of a JSONL file: key question (or Question), and, where it has them, answer,
    alternatives (a list), context, label (yes, no, maybe), id.

    Raises DataError with the line number: see `read_json_lines`; a key that is missing or of another
    kind; an unknown label.
    """
    for number, record in read_json_lines(path):
        text = string_of(record, ("question", "Question"), path, number)
        answer, context, label, identifier = (
            string_of(record, (key,), path, number) if key in record else ""
            for key in ("answer", "context", "label", "id")
        )
        others = record.get("alternatives", [])
        if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
            raise bad_line(path, number, "'alternatives' is no list of strings")
        if label and label not in LABELS:
            raise bad_line(path, number, f"label {label!r}, not yes, no or maybe")
        yield Question(
            text, answer, tuple(others), context, LABELS.get(label, ""), identifier or str(number)
        )


def read_pubmedqa(path: str | Path) -> list[Question]:
    """The questions of a PubMedQA file, {id: {QUESTION, CONTEXTS, final_decision}}, each with its
    abstract less the conclusion as context. Source: Jin et al. 2019, arXiv:1909.06146.

    Raises DataError: not such a file, naming the record.
    """
    with open_input(path) as stream:
        content = stream.read()
    try:
        records = json.loads(content)
        return [_pubmedqa_question(name, record) for name, record in records.items()]
    except (ValueError, RecursionError, AttributeError) as error:
        raise DataError(
            f"{path} is no PubMedQA file: {error}",
            "it holds an object of questions by their PubMed id",
            "ori_pqal.json of github.com/pubmedqa/pubmedqa",
        ) from None


def _pubmedqa_question(name: str, record: dict) -> Question:
    """Raises ValueError for a record that is none."""
    try:
        text, contexts, label = (record[k] for k in ("QUESTION", "CONTEXTS", "final_decision"))
        if not isinstance(text, str) or not isinstance(contexts, list):
            raise TypeError("QUESTION is no string, or CONTEXTS no list")
        return Question(text, context=" ".join(contexts), label=LABELS[label], identifier=name)
    except (KeyError, TypeError) as error:
        raise ValueError(f"record {name}: {error!r}") from None
