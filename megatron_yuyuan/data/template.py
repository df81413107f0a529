"""How a question and its answer become text. A checkpoint that was trained on it stores it."""

from dataclasses import asdict, dataclass

from megatron_yuyuan.errors import DataError


@dataclass(frozen=True)
class QuestionTemplate:
    """`Question:{question} answer:` and ` {answer}`, always encoded apart.

    So a prompt has the same ids in training, with its answer, and in use, without. Source: the
    prompt of the YuyuanQA-GPT2-3.5B model card.
    """

    prompt: str = "Question:{question} answer:"
    """What the model is given; {question} stands for the question, stripped."""
    answer: str = " {answer}"
    """What it is to say; {answer} stands for the answer, stripped. The end of text follows."""

    def prompt_text(self, question: str) -> str:
        """The prompt for one question."""
        return self.prompt.replace("{question}", question.strip())

    def answer_text(self, answer: str) -> str:
        """The text that follows a prompt, without the end of text."""
        return self.answer.replace("{answer}", answer.strip())

    def encode_prompt(self, tokenizer, question: str) -> list[int]:
        """Ids of the prompt. Raises DataError for text the tokenizer refuses."""
        return tokenizer.encode(self.prompt_text(question))

    def encode_answer(self, tokenizer, answer: str) -> list[int]:
        """Ids of the answer and, last, the end of text. Raises DataError as `encode_prompt`."""
        return [*tokenizer.encode(self.answer_text(answer)), tokenizer.eod]

    def to_dict(self) -> dict[str, str]:
        """Plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, str]) -> "QuestionTemplate":
        """The inverse of `to_dict`. Raises DataError: a text or its placeholder is missing."""
        expected = TEMPLATE.to_dict()
        whole = (
            isinstance(values, dict)
            and values.keys() == expected.keys()
            and all(
                isinstance(values[field], str) and values[field].count(placeholder) == 1
                for field, placeholder in (("prompt", "{question}"), ("answer", "{answer}"))
            )
        )
        if not whole:
            raise DataError(
                f"not a question template: {values!r}",
                "prompts must be those the model was trained on",
                f"{expected}",
            )
        return QuestionTemplate(**values)


TEMPLATE = QuestionTemplate()
"""The template of YuyuanQA."""
