"""Generation: neither cache, nor batch, nor layout changes a text; greedy is transformers' greedy; a
seed decides; a text ends."""

import copy
from pathlib import Path

import pytest
import torch
from tiny import TINY, Layout

from megatron_yuyuan.checkpoint.hf_format import huggingface_config, to_huggingface
from megatron_yuyuan.checkpoint.model import LoadedModel
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.errors import ConfigError, DataError
from megatron_yuyuan.evaluate.generate import (
    answer,
    answer_all,
    complete,
    complete_all,
    generate,
    generate_batch,
)
from megatron_yuyuan.model.decoding import store_by_columns
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.parallel.forward import DividedModel
from megatron_yuyuan.parallel.plan import build_stages

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT, NEVER = [3, 14, 15, 9, 2], -1
PROMPTS = [PROMPT, [8], list(range(30, 60)), [7, 7, 7], list(range(12))]
DIVIDED = [[3, 14, 15], [8], list(range(50, 59))]
SAMPLED = {"temperature": 1.0, "top_k": 50, "top_p": 0.95}


@pytest.fixture(scope="module")
def model() -> GPT2:
    """Weights wide enough that the next token depends on all those before it."""
    config = (
        Config()
        .replace(
            num_layers=3,
            hidden_size=32,
            num_attention_heads=4,
            vocab_size=120,
            max_position_embeddings=48,
            init_method_std=0.3,
        )
        .model
    )
    model = GPT2(config)
    init_weights(model, seed=5)
    return model.eval()


WAYS = [{}, SAMPLED, {"repetition_penalty": 1.3}, {**SAMPLED, "repetition_penalty": 1.1, "seed": 4}]


@pytest.mark.parametrize("sampling", WAYS, ids=str)
@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
def test_a_text_does_not_depend_on_those_beside_it(model, sampling, use_cache):
    """Prompts of 1 to 30 tokens; the longest has no room for all 25 tokens, others end before."""
    alone = [generate(model, prompt, 25, eod=NEVER, **sampling) for prompt in PROMPTS]
    eod = alone[0][9]
    options = {"eod": eod, "use_cache": use_cache, **sampling}
    together = generate_batch(model, PROMPTS, 25, **options)
    cut = [text[: text.index(eod) + 1] if eod in text else text for text in alone]
    assert together == cut
    assert len({len(text) for text in together}) > 1 and len(alone[2]) == 48 - 30
    assert not generate_batch(model, [], 25, **options)


def every_way(model) -> list[list[list[list[int]]]]:
    """For two kinds of sampling, the texts in one batch and one by one, with the cache and without."""
    return [
        [
            texts
            for use_cache in (True, False)
            for texts in (
                generate_batch(model, DIVIDED, 9, eod=7, use_cache=use_cache, **sampling),
                [generate(model, p, 9, eod=7, use_cache=use_cache, **sampling) for p in DIVIDED],
            )
        ]
        for sampling in WAYS[1:3]
    ]


def divided_texts(config) -> list[list[list[list[int]]]]:
    mesh = mesh_module.start(config.parallel)
    return every_way(DividedModel(build_stages(config, mesh), mesh, config))


@pytest.mark.parametrize(
    "layout", [Layout(tensor=2), Layout(tensor=4), Layout(pipeline=2, tensor=2)], ids=str
)
def test_every_layout_generates_the_same_in_every_way(ranks, layout):
    config = TINY.replace(num_layers=2)
    whole = GPT2(config.model)
    init_weights(whole, config.training.seed)
    expected = every_way(whole.eval())
    assert ranks.run(layout.ranks, divided_texts, layout.of(config)) == expected
    for batch, *others in expected:
        assert others == [batch] * 3
    (first, *_), (second, *_) = expected
    assert first != second and len({len(text) for text in first}) > 1


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_the_cache_changes_no_token(model, sampling):
    with_cache, without = (
        generate(model, PROMPT, 40, eod=NEVER, use_cache=c, **sampling) for c in (True, False)
    )
    assert with_cache == without and len(without) == 40
    assert len(set(without)) > 5  # not one token over and over, which any cache would give


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_is_what_transformers_generates(model, penalty):
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(GPT2Config(**huggingface_config(model.config, 0, "float32"))).eval()
    theirs.load_state_dict(to_huggingface(model.state_dict(), model.config), strict=False)
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT)),
        max_new_tokens=30,
        do_sample=False,
        repetition_penalty=penalty,
        pad_token_id=0,
    )
    found = generate(model, PROMPT, 30, eod=NEVER, repetition_penalty=penalty)
    assert found == expected[0, len(PROMPT) :].tolist()
    assert penalty == 1 or found != generate(model, PROMPT, 30, eod=NEVER)


def test_the_order_in_memory_changes_no_token(model):
    stored = copy.deepcopy(model)
    store_by_columns(stored)
    for (name, rows), columns in zip(model.named_parameters(), stored.parameters(), strict=True):
        assert torch.equal(rows, columns), name
    assert not stored.h["0"].mlp.c_fc.weight.is_contiguous()
    assert stored.h["0"].mlp.c_proj.weight.is_contiguous()
    assert generate(stored, PROMPT, 30, eod=NEVER) == generate(model, PROMPT, 30, eod=NEVER)


def test_a_seed_decides_the_sample(model):
    first, again, other = (
        generate(model, PROMPT, 30, eod=NEVER, seed=seed, **SAMPLED) for seed in (1, 1, 2)
    )
    torch.manual_seed(99)  # the global generator has no part in it
    assert first == again == generate(model, PROMPT, 30, eod=NEVER, seed=1, **SAMPLED)
    assert first != other and first != generate(model, PROMPT, 30, eod=NEVER)


def test_the_likeliest_token_alone_is_greedy(model):
    greedy = generate(model, PROMPT, 20, eod=NEVER)
    for sampling in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert generate(model, PROMPT, 20, eod=NEVER, **({"temperature": 1.0} | sampling)) == greedy


def test_samples_stay_among_those_allowed(model):
    """The first token drawn 30 times: within the 5 likeliest, and more than one of them."""
    tokens = torch.tensor([PROMPT])
    with torch.no_grad():
        logits = model(
            tokens, positions=torch.arange(len(PROMPT))[None], sample_ids=tokens[:, 0], step=0
        )[0, -1]
    likeliest = logits.topk(5).indices.tolist()
    cumulative = logits.softmax(0).sort(descending=True).values.cumsum(0)
    drawn = {
        generate(model, PROMPT, 1, eod=NEVER, temperature=2.0, top_k=5, seed=s)[0]
        for s in range(30)
    }
    assert drawn <= set(likeliest) and len(drawn) > 1
    nucleus = logits.sort(descending=True).indices[: int((cumulative < 0.5).sum()) + 1].tolist()
    drawn = {
        generate(model, PROMPT, 1, eod=NEVER, temperature=1.0, top_p=0.5, seed=s)[0]
        for s in range(30)
    }
    assert drawn <= set(nucleus) and len(nucleus) < 120


def test_a_text_ends_at_the_end_of_text(model):
    free = generate(model, PROMPT, 30, eod=NEVER)
    eod = free[7]
    assert generate(model, PROMPT, 30, eod=eod) == free[: free.index(eod) + 1]


def test_a_text_never_exceeds_the_positions(model):
    assert len(generate(model, PROMPT, 1000, eod=NEVER)) == 48 - len(PROMPT)
    assert len(generate(model, list(range(47)), 1000, eod=NEVER)) == 1
    with pytest.raises(DataError, match="prompt 0 has 60 tokens, the model 48 positions"):
        generate(model, list(range(60)), 1, eod=NEVER)
    with pytest.raises(DataError, match="prompt 1 has 0 tokens"):
        generate_batch(model, [PROMPT, []], 1, eod=NEVER)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"temperature": 1e-46},
        {"seed": 2**64},
        {"max_new_tokens": 0},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(model, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        generate(model, PROMPT, **({"max_new_tokens": 5, "eod": NEVER} | wrong))


def test_an_answer_is_asked_through_the_template_and_ends_without_its_mark():
    """A model of zeros whose last LayerNorm's bias points at one token says that token whatever it
    is asked."""
    tokenizer = train_bpe(iter(["Question:What is gout? answer: A disease."] * 4), 300)
    config = (
        Config()
        .replace(
            num_layers=1,
            hidden_size=32,
            num_attention_heads=4,
            max_position_embeddings=64,
            vocab_size=tokenizer.vocab_size,
        )
        .model
    )
    model = GPT2(config).eval()
    loaded = LoadedModel(model, tokenizer, TEMPLATE, {}, Path())

    def say(token: int) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            model.wte.weight[token], model.ln_f.bias[:] = 1.0, 1.0

    [letter] = tokenizer.encode("e")
    say(letter)
    assert answer(loaded, "What?", 4) == "eeee" == complete(loaded, tokenizer.encode("x"), 4)
    room = 64 - len(TEMPLATE.encode_prompt(tokenizer, "What?"))
    assert answer(loaded, "What?", 1000) == "e" * room  # the prompt is the template's
    say(tokenizer.eod)
    assert answer(loaded, "What?", 4) == ""


def test_many_prompts_come_back_in_their_order(model, monkeypatch):
    """The words are the ids, so that a text shows which prompt it continues."""
    loaded = LoadedModel(model, Words(), TEMPLATE, {}, Path())
    expected = [complete(loaded, prompt, 6) for prompt in PROMPTS]
    assert len(set(expected)) == len(expected)
    assert complete_all(loaded, PROMPTS, 6, batch_size=2) == expected
    monkeypatch.setattr(
        type(TEMPLATE), "encode_prompt", lambda self, tokenizer, number: PROMPTS[number]
    )
    assert answer_all(loaded, range(5), 6, batch_size=3) == expected


class Words:
    """A tokenizer whose text is the ids."""

    eod = NEVER

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))
