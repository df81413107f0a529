"""The template: exact texts, encoded apart, kept in a checkpoint."""

import pytest

from megatron_yuyuan.data.template import TEMPLATE, QuestionTemplate
from megatron_yuyuan.data.tokenizer import Tokenizer, train_bpe
from megatron_yuyuan.errors import DataError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(iter(["Question:What is gout? answer: A disease. answer: answer:"] * 3), 300)


def test_prompt_and_answer_are_the_texts_of_the_model_card(tokenizer):
    prompt = TEMPLATE.encode_prompt(tokenizer, "  What is {answer} gout? \n")
    answer = TEMPLATE.encode_answer(tokenizer, " A disease.\n")
    assert tokenizer.decode(prompt) == "Question:What is {answer} gout? answer:"
    assert tokenizer.decode(answer) == " A disease.<|endoftext|>"
    assert answer[-1] == tokenizer.eod and answer.count(tokenizer.eod) == 1


def test_prompt_and_answer_are_encoded_apart(tokenizer):
    """Joined text may merge across the border: then a prompt alone would be other tokens."""
    template = QuestionTemplate(prompt="{question}answ", answer="er:{answer}")
    apart = template.encode_prompt(tokenizer, "") + template.encode_answer(tokenizer, "")[:-1]
    assert tokenizer.decode(apart) == "answer:"
    assert apart != tokenizer.encode("answer:")  # the case exists, and encode_* avoids it


def test_a_stored_template_comes_back():
    assert QuestionTemplate.from_dict(TEMPLATE.to_dict()) == TEMPLATE
    own = QuestionTemplate(prompt="Q: {question}\nA:", answer=" {answer}")
    assert QuestionTemplate.from_dict(own.to_dict()) == own


@pytest.mark.parametrize(
    "stored",
    [
        None,
        {},
        {"prompt": "{question}"},
        {"prompt": "no place", "answer": "{answer}"},
        {"prompt": "{question}", "answer": 3},
        {"prompt": "{question}", "answer": "{answer}", "x": 1},
    ],
)
def test_what_is_not_a_template_is_refused(stored):
    with pytest.raises(DataError, match="not a question template"):
        QuestionTemplate.from_dict(stored)
