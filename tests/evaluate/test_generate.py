"""Generation: the cache changes nothing, greedy is transformers' greedy, a seed decides, a text
ends."""

from pathlib import Path

import pytest
import torch

from megatron_yuyuan.checkpoint.hf_format import huggingface_config, to_huggingface
from megatron_yuyuan.checkpoint.model import LoadedModel
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.errors import ConfigError, DataError
from megatron_yuyuan.evaluate.generate import answer, complete, generate
from megatron_yuyuan.model.gpt2 import GPT2, init_weights

PROMPT, NEVER = [3, 14, 15, 9, 2], -1
SAMPLED = {"temperature": 1.0, "top_k": 50, "top_p": 0.95}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Many tiny steps: threads would wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_the_cache_changes_no_token(model, sampling):
    with_cache, without = (
        generate(model, PROMPT, 40, eod=NEVER, use_cache=c, **sampling) for c in (True, False)
    )
    assert with_cache == without and len(without) == 40
    assert len(set(without)) > 5  # not one token over and over, which any cache would give


def test_greedy_is_what_transformers_generates(model):
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(GPT2Config(**huggingface_config(model.config, 0, "float32"))).eval()
    theirs.load_state_dict(to_huggingface(model.state_dict(), model.config), strict=False)
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT)),
        max_new_tokens=30,
        do_sample=False,
        pad_token_id=0,
    )
    assert generate(model, PROMPT, 30, eod=NEVER) == expected[0, len(PROMPT) :].tolist()


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
    with pytest.raises(DataError, match="the prompt has 60 tokens, the model 48 positions"):
        generate(model, list(range(60)), 1, eod=NEVER)
    with pytest.raises(DataError, match="the prompt has 0 tokens"):
        generate(model, [], 1, eod=NEVER)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
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
