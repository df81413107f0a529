"""The same prompts, continued at every evaluation: the same text on every layout, and no other training."""

import pytest
import torch
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.continuations import PROMPTS, QUESTIONS, continue_prompts
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.errors import ConfigErrors
from megatron_yuyuan.log import Console, Log, Sink
from megatron_yuyuan.train.loop import train
from megatron_yuyuan.validation import validate

CONFIG = TINY.replace(
    vocab_size=300, max_position_embeddings=48, eval_interval=2, eval_iters=1, train_iters=4,
    hidden_dropout=0.1, eval_prompt_tokens=6,
)  # fmt: skip
"""Evaluates after steps 2 and 4; the vocabulary is larger than the tokenizer's."""


class Heard(Sink):
    """Keeps what happens."""

    def __init__(self):
        self.events: list[tuple[str, dict]] = []

    def event(self, event: str, values: dict) -> None:
        self.events.append((event, values))

    def texts(self) -> list[list[dict]]:
        return [values["texts"] for event, values in self.events if event == "continuations"]

    def losses(self) -> list[float]:
        return [values["lm_loss"] for event, values in self.events if event == "step"]


class Never:
    """Saves nothing and stops nothing."""

    def save(self, _validation_loss) -> None: ...

    def poll(self) -> None: ...

    def agreed(self, _iteration, _device) -> None: ...


def told(config, questions: bool = False) -> tuple[list[float], list[list[dict]], list[bool]]:
    """(losses, texts, whether sequences are divided again in every layer) of a run, which is seen to train
    as one that continues nothing."""
    silent, _, _ = trained(config.replace(eval_prompt_tokens=0), questions)
    losses, texts, divided = trained(config, questions)
    assert losses == silent
    assert len(losses) == 4 and losses[-1] != losses[0]
    return losses, texts, divided


def trained(config, questions: bool) -> tuple[list[float], list[list[dict]], list[bool]]:
    tokenizer = train_bpe([*PROMPTS, *QUESTIONS], vocab_size=280)
    trainer, log, heard = build_trainer(config), Log(None, False), Heard()
    log.add(heard)
    show = continue_prompts(config, trainer.state, tokenizer, questions, log)
    drawn = torch.get_rng_state()
    train(trainer, RandomText(config), RandomText(config), Never(), Never(), log, show)
    assert torch.equal(drawn, torch.get_rng_state())
    modules = [m for stage in trainer.state.stages for m in stage.modules() if hasattr(m, "axis")]
    return heard.losses(), heard.texts(), [m.axis.divides_sequence for m in modules]


@pytest.fixture(scope="module")
def alone(ranks) -> list[list[dict]]:
    """The texts that one process writes."""
    return ranks.run(1, told, CONFIG)[1]


def test_every_evaluation_continues_the_same_prompts(alone):
    first, second = alone
    assert [text["prompt"] for text in first] == list(PROMPTS)
    assert [text["prompt"] for text in second] == list(PROMPTS)
    assert first != second  # the model has learned


LAYOUTS = [
    (Layout(1, 1, 2, True), {}),
    (Layout(2, 1, 1), {"pipeline_schedule": "ZBVZeroBubble"}),
    pytest.param(
        Layout(1, 2, 1),
        {"data_parallel_sharding_strategy": "optim_grads_params"},
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("layout", "more"), LAYOUTS, ids=["tp2sp", "pp2", "dp2"])
def test_every_layout_writes_the_same(ranks, alone, layout, more):
    _, texts, divided = ranks.run(layout.ranks, told, layout.of(CONFIG.replace(**more)))
    assert texts == alone
    assert set(divided) == {layout.sequence_parallel}


def asked(config, prompts: tuple[str, ...]) -> tuple[list[dict], list[dict]]:
    """Texts at the first evaluation of a finetuning, and of a pretraining with these prompts."""
    answers = trained(config, questions=True)[1]
    return answers[0], trained(config.replace(eval_prompts=prompts), questions=False)[1][0]


def test_a_finetuning_answers_questions_and_a_long_prompt_loses_its_beginning(ranks):
    prompts = (*("Aspirin " * words + "is used to" for words in (60, 61)), "is used to")
    answers, texts = ranks.run(1, asked, CONFIG.replace(train_iters=2), prompts)
    assert [text["prompt"] for text in answers] == list(QUESTIONS)
    assert [text["prompt"] for text in texts] == list(prompts)
    first, second, short = (text["continuation"] for text in texts)
    assert first == second != short


def test_they_are_said_on_the_console():
    said: list[str] = []
    texts = [{"prompt": "Gout is", "continuation": " a\n\x1b[31mdisease"}]
    Console(said.append).event("continuations", {"iteration": 7, "texts": texts})
    assert said == [
        " continued at iteration 7 | Gout is [[ a \N{REPLACEMENT CHARACTER}[31mdisease]]"
    ]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"eval_prompts": ("Gout is", " ")}, "eval_prompts has an empty text"),
        ({"eval_prompts": ("Gout is",), "eval_prompt_tokens": 0}, "eval_prompts without"),
    ],
    ids=["empty", "none"],
)
def test_what_cannot_be_continued_is_refused(changes, what):
    with pytest.raises(ConfigErrors) as raised:
        validate(TINY.replace(**changes), 1)
    assert any(what in problem.what for problem in raised.value.problems)
