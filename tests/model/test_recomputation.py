"""Activation recomputation: the same bits, and less that is kept."""

from collections import Counter

import pytest
import torch
from tiny import TINY, RandomText

from megatron_yuyuan.data.loader import read_batch
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights
from megatron_yuyuan.model.recomputation import Recomputation

DROPOUT = TINY.replace(hidden_dropout=0.1, attention_dropout=0.1)
KINDS = {
    "none": Recomputation(),
    "selective": Recomputation("selective"),
    "block 3": Recomputation("full", "block", 3),
    "uniform 1": Recomputation("full", "uniform", 1),
    "uniform 3": Recomputation("full", "uniform", 3),
    "uniform 9": Recomputation("full", "uniform", 9),
}


def loss_of(model: GPT2) -> torch.Tensor:
    batch = read_batch(RandomText(), 0, 4, 0, 1, "cpu")
    return model(batch.tokens, **batch.model_inputs(), step=3, labels=batch.labels)[0].sum()


def build(kind: str, config=DROPOUT) -> GPT2:
    model = GPT2(config.model, config.training.seed)
    init_weights(model, config.training.seed)
    model.recompute(KINDS[kind])
    return model


def loss_and_gradients(kind: str, config) -> dict[str, torch.Tensor]:
    model = build(kind, config)
    loss = loss_of(model)
    loss.backward()
    return {"loss": loss, **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.parametrize("config", [TINY, DROPOUT], ids=["plain", "dropout"])
def test_loss_and_gradients_have_the_same_bits(config):
    expected = loss_and_gradients("none", config)
    for kind in list(KINDS)[1:]:
        actual = loss_and_gradients(kind, config)
        assert actual.keys() == expected.keys()
        for name, tensor in actual.items():
            assert torch.equal(tensor, expected[name]), (kind, name)


def bytes_kept(kind: str) -> int:
    """Bytes that the forward keeps for the backward, parameters not counted, each storage once."""
    model, kept = build(kind), {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = tensor  # alive, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model)
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_each_kind_keeps_less():
    kept = {kind: bytes_kept(kind) for kind in KINDS}
    assert kept["selective"] < 0.8 * kept["none"]
    assert kept["block 3"] < 0.8 * kept["none"]
    assert kept["uniform 1"] < 0.2 * kept["none"]
    assert kept["uniform 9"] < kept["uniform 3"] < kept["uniform 1"]


@pytest.mark.parametrize(
    ("kind", "blocks", "cores"),
    [
        ("none", [1] * 8, 1),
        ("selective", [1] * 8, 2),
        ("block 3", [2] * 3 + [1] * 5, None),
        ("uniform 1", [2] * 8, 2),
        ("uniform 3", [2] * 8, 2),
    ],
)
def test_what_is_computed_twice_is_what_was_chosen(kind, blocks, cores):
    model, calls = build(kind), Counter()
    for name, block in model.h.items():
        block.mlp.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
        block.attn.attn_dropout.register_forward_pre_hook(lambda *_: calls.update(["core"]))
    loss_of(model).backward()
    assert [calls[name] for name in model.h] == blocks
    assert calls["core"] == (8 * cores if cores else sum(blocks))


def test_evaluation_computes_nothing_twice():
    model, calls = build("uniform 1").eval(), Counter()
    model.h["0"].mlp.register_forward_pre_hook(lambda *_: calls.update("x"))
    with torch.no_grad():
        assert torch.equal(loss_of(model), loss_of(build("none").eval()))
    assert calls.total() == 1


def test_all_blocks_run_once_and_in_order():
    for recomputation in KINDS.values():
        runs = recomputation.runs(list("abcdefgh"))
        assert "".join("".join(run) for run, _ in runs) == "abcdefgh"
