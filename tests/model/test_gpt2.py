"""The one model: GPT-2's own mathematics, and the size it says."""

import pytest
import torch
from tiny import TINY

from megatron_yuyuan.checkpoint.hf_format import from_huggingface
from megatron_yuyuan.config import IGNORE, Config, ModelConfig
from megatron_yuyuan.config_toml import load_toml
from megatron_yuyuan.kernels.philox import name_key, normal
from megatron_yuyuan.model.decoding import KeyValueCache
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights

SHAPE = ModelConfig(
    num_layers=2, hidden_size=32, num_attention_heads=4, vocab_size=101, max_position_embeddings=24
)


def build(config=SHAPE, seed=3) -> GPT2:
    model = GPT2(config, seed)
    init_weights(model, seed)
    return model


def model_inputs(tokens: torch.Tensor) -> dict:
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return {"positions": positions, "sample_ids": torch.arange(len(tokens)), "step": 0}


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 101, (3, 20), generator=torch.Generator().manual_seed(1))


def test_loss_and_every_gradient_are_those_of_transformers(tokens):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            n_layer=2,
            n_embd=32,
            n_head=4,
            n_positions=24,
            vocab_size=101,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    )
    with torch.no_grad():  # the library's own values are too small to show a mistake
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = GPT2(SHAPE)
    ours.load_state_dict(from_huggingface(theirs.state_dict(), SHAPE))
    torch.testing.assert_close(ours(tokens, **model_inputs(tokens)), theirs(tokens).logits)

    labels = tokens.roll(-1, 1)
    labels[:, -1] = IGNORE
    total, count = ours(tokens, **model_inputs(tokens), labels=labels)
    (total / count).sum().backward()
    loss = theirs(tokens, labels=tokens).loss
    loss.backward()
    assert (total / count).item() == pytest.approx(loss.item(), rel=1e-6)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    expected = from_huggingface(gradients, SHAPE)
    assert expected.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        difference = (parameter.grad - expected[name]).abs().max()
        assert difference <= 1e-5 * expected[name].abs().max(), name


def test_padding_rows_of_the_vocabulary_take_no_part(tokens):
    model = build()
    assert model.wte.weight.shape[0] == 128
    before = model(tokens, **model_inputs(tokens), labels=tokens)[0]
    before.sum().backward()
    assert not model.wte.weight.grad[101:].any()
    with torch.no_grad():
        model.wte.weight[101:] = 1e4
    assert torch.equal(model(tokens, **model_inputs(tokens), labels=tokens)[0], before)
    assert model(tokens, **model_inputs(tokens)).shape == (3, 20, 101)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("yuyuan_3.5b", 3_556_270_080), ("gpt2_124m", 124_475_904), ("tiny", None)],
)
def test_the_named_sizes_count_their_parameters(repository, name, parameters):
    config = Config().replace(**load_toml(repository / "examples" / "configs" / f"{name}.toml"))
    if not config.model.vocab_size:
        config = config.replace(vocab_size=1024, max_position_embeddings=64)
    with torch.device("meta"):
        counted = sum(p.numel() for p in GPT2(config.model).parameters())
    assert counted == config.model.num_parameters
    assert counted == (parameters or 932_608)


def test_yuyuan_has_its_published_shape(repository):
    path = repository / "examples" / "configs" / "yuyuan_3.5b.toml"
    model = Config().replace(**load_toml(path)).model
    assert (model.num_layers, model.num_attention_heads, model.hidden_size) == (30, 32, 3072)
    assert (model.vocab_size, model.padded_vocab_size) == (50257, 50304)
    assert model.max_position_embeddings == 1024


def test_initial_values_follow_the_table():
    model = build(TINY.model, seed=5)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.dim() == 1:
            assert (parameter == 1).all(), name
        else:
            depth = (2 * TINY.model.num_layers) ** 0.5 if name.endswith("c_proj.weight") else 1.0
            assert parameter.std().item() == pytest.approx(0.2 / depth, rel=0.1), name
    expected = normal(0, 12, name_key(5, "h.3.mlp.c_fc.weight")) * 0.2
    assert torch.equal(parameters["h.3.mlp.c_fc.weight"].flatten()[:12], expected)


def test_documents_in_one_sequence_do_not_see_each_other(tokens):
    model = build()
    document_ids = torch.tensor([0] * 8 + [1] * 12).expand(3, -1)
    positions = torch.tensor([*range(8), *range(12)]).expand(3, -1)
    packed = model(
        tokens, positions=positions, sample_ids=torch.arange(3), step=0, document_ids=document_ids
    )
    for part in (tokens[:, :8], tokens[:, 8:]):
        alone = model(part, **model_inputs(part))
        where = slice(0, 8) if part.shape[1] == 8 else slice(8, 20)
        torch.testing.assert_close(packed[:, where], alone)
    assert not torch.allclose(packed, model(tokens, **model_inputs(tokens)), atol=1e-3)


def test_the_cache_gives_the_logits_of_the_whole_text(tokens):
    model = build().eval()
    with torch.no_grad():
        whole, cache = model(tokens, **model_inputs(tokens)), KeyValueCache(20)
        for start, stop in [(0, 7), (7, 8), (8, 13), (13, 20)]:
            part = {**model_inputs(tokens), "positions": torch.arange(start, stop).expand(3, -1)}
            logits = model(tokens[:, start:stop], **part, cache=cache)
            cache.advance(stop - start)
            torch.testing.assert_close(logits, whole[:, start:stop])


def test_the_unfused_attention_of_dropout_is_the_fused_one(tokens, monkeypatch):
    """With a mask that keeps everything, the path of attention dropout must change nothing."""
    model = build(SHAPE)
    expected = model(tokens, **model_inputs(tokens))
    for block in model.h.values():
        block.attn.attn_dropout.p = 1e-12  # int(p * 2**32) is 0: nothing is dropped
    torch.testing.assert_close(model(tokens, **model_inputs(tokens)), expected)


def test_dropout_is_a_function_of_step_and_sample_alone(tokens):
    config = ModelConfig(**{**SHAPE.__dict__, "hidden_dropout": 0.2, "attention_dropout": 0.2})
    model = build(config)
    whole = model(tokens, **model_inputs(tokens))
    part = {**model_inputs(tokens[1:]), "sample_ids": torch.tensor([1, 2])}
    torch.testing.assert_close(model(tokens[1:], **part), whole[1:])
    assert not torch.allclose(model(tokens, **{**model_inputs(tokens), "step": 1}), whole)
    assert not torch.allclose(model(tokens[1:], **model_inputs(tokens[1:])), whole[1:])
    assert torch.equal(
        model.eval()(tokens, **model_inputs(tokens)), build()(tokens, **model_inputs(tokens))
    )
