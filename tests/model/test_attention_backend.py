"""Which attention computes, and that the two ways to it are one function."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY
from torch.nn.attention import SDPBackend

from megatron_yuyuan.errors import ConfigErrors
from megatron_yuyuan.kernels import Kernels, reference
from megatron_yuyuan.model.attention_backend import (
    attention_weights,
    backends_chosen,
    describe_attention,
    prefers_cudnn,
    sdpa_backends,
)
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights
from megatron_yuyuan.validation import validate

CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
EFFICIENT, MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
BF16, FP32 = torch.bfloat16, torch.float32
TORCH = {"attention_dropout": 0.1, "attention_dropout_rng": "torch"}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
UNFUSED = "unfused: scores, causal softmax, values"


@pytest.fixture
def hopper(monkeypatch):
    """A GPU, and a torch for it, that need not be there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92000)


@pytest.mark.parametrize(
    ("asked", "cudnn", "dtype", "masked", "dropout", "expected"),
    [
        ("auto", True, BF16, False, 0.0, [CUDNN, FLASH, EFFICIENT, MATH]),
        ("auto", True, torch.float16, False, 0.0, [CUDNN, FLASH, EFFICIENT, MATH]),
        ("auto", False, BF16, False, 0.0, [FLASH, EFFICIENT, MATH]),
        ("auto", True, BF16, False, 0.1, [FLASH, EFFICIENT, MATH]),
        ("auto", True, BF16, True, 0.0, [EFFICIENT, MATH]),
        ("auto", True, FP32, False, 0.1, [EFFICIENT, MATH]),
        ("flash", True, BF16, False, 0.1, [FLASH]),
        ("flash", True, BF16, True, 0.0, [EFFICIENT, MATH]),
        ("flash", True, FP32, False, 0.0, [EFFICIENT, MATH]),
        ("fused", True, BF16, False, 0.0, [CUDNN]),
        ("efficient", False, FP32, True, 0.1, [EFFICIENT, MATH]),
        ("unfused", True, BF16, False, 0.1, [MATH]),
        ("unfused", True, FP32, True, 0.1, [MATH]),
    ],
)
def test_the_table_of_choices(asked, cudnn, dtype, masked, dropout, expected):
    assert sdpa_backends(asked, cudnn, dtype, masked, dropout) == expected


def test_cudnn_never_drops_unasked():
    calls = itertools.product((False, True), (BF16, FP32), (False, True))
    assert not any(CUDNN in sdpa_backends("auto", *call, 0.1) for call in calls)


@pytest.mark.parametrize(
    ("capability", "version", "expected"),
    [(9, 91501, True), (10, 92000, True), (8, 92000, False), (9, 91500, False), (9, None, False)],
)
def test_cudnn_goes_first_where_it_is_faster_and_right(monkeypatch, capability, version, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    assert prefers_cudnn(torch.device("cuda", 0)) is expected


def test_cudnn_is_left_out_where_sums_need_an_order(hopper):
    torch.use_deterministic_algorithms(True)
    try:
        assert not prefers_cudnn(torch.device("cuda", 0))
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_choice_is_in_force_on_cuda_and_leaves_with_the_call(hopper):
    """SDPA's switches and their order, which a torch without CUDA has too."""
    in_force = functools.partial(torch.nn.attention._cur_sdpa_kernel_backends, with_priority=True)
    before = in_force()
    for asked, expected in (("auto", [CUDNN, FLASH, EFFICIENT, MATH]), ("unfused", [MATH])):
        with backends_chosen(asked, torch.device("cuda", 0), BF16, False, 0.0):
            assert in_force() == expected
        with backends_chosen(asked, torch.device("cpu"), BF16, False, 0.0):
            assert in_force() == before
    assert in_force() == before != [MATH]


@pytest.mark.parametrize("head_dim", [8, 12, 64, 96])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_the_unfused_way_is_sdpa_in_float32(head_dim, documents, device):
    """Outputs and gradients, of a square, and of the last 3 of 7 tokens."""
    draw = torch.Generator().manual_seed(0)
    for queries, keys in ((7, 7), (3, 7)):
        q, k, v, dy = (
            torch.randn(2, 3, length, head_dim, generator=draw).to(device).requires_grad_()
            for length in (queries, keys, keys, queries)
        )
        causal = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        causal = causal.tril(keys - queries)
        allowed = causal & (torch.arange(keys, device=device) != 1)  # but for token 1
        mask = allowed if documents else None
        ours = attention_weights(q, k, mask, Kernels()) @ v
        theirs = F.scaled_dot_product_attention(q, k, v, allowed if documents else causal)
        gradients = (torch.autograd.grad(y, (q, k, v), dy) for y in (ours, theirs))
        pairs = [(ours, theirs), *zip(*gradients, strict=True)]
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=0, atol=5e-6 * b.abs().max().item())


def test_the_models_are_one():
    """attention_impl changes who computes, not what: logits, and which kernel was asked."""
    tokens, asked = torch.arange(16)[None] * 7 % 120, []

    def watched(scores, scale):
        asked.append(scale)
        return reference.causal_softmax(scores, scale)

    logits = {}
    for changes in ({}, {"attention_impl": "fused_softmax"}, {"attention_backend": "local"}):
        model = GPT2(TINY.replace(**changes).model, kernels=Kernels(causal_softmax=watched)).eval()
        init_weights(model, 0)
        inputs = {"positions": tokens * 0, "sample_ids": torch.zeros(1).long(), "step": 0}
        logits[len(asked)] = model(tokens, **inputs)
    layers = TINY.model.num_layers
    assert list(logits) == [0, layers, 2 * layers] and asked == [1.0] * 2 * layers
    expected = logits.pop(0)
    for other in logits.values():
        torch.testing.assert_close(other, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


BORDERS = ", masked at the borders of documents"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "fused, else flash, else efficient, else unfused"),
        (TORCH, "flash, else efficient, else unfused"),
        ({"attention_backend": "efficient"}, "efficient"),
        ({"attention_dropout": 0.1}, UNFUSED),
        ({"attention_impl": "fused_softmax"}, UNFUSED),
    ],
)
def test_a_person_is_told(hopper, changes, expected):
    model, on_cpu = TINY.replace(**changes).model, UNFUSED
    assert describe_attention(model, BF16, torch.device("cuda", 0)) == expected
    if expected != UNFUSED:
        on_cpu = "scaled_dot_product_attention as torch has it on the CPU"
    assert describe_attention(model, BF16, torch.device("cpu")) == on_cpu


@pytest.mark.parametrize(
    ("changes", "expected", "on_cpu"),
    [
        ({}, "efficient, else unfused", "scaled_dot_product_attention as torch has it on the CPU"),
        ({"attention_dropout": 0.1}, "unfused: scores, masked softmax, values", ""),
    ],
)
def test_a_person_is_told_what_masks_of_documents_leave(hopper, changes, expected, on_cpu):
    """Flash and cuDNN know the plain causal mask alone: what takes these samples is said."""
    model, end = TINY.replace(**changes).model, BORDERS if on_cpu else ""
    on_cuda = describe_attention(model, BF16, torch.device("cuda", 0), masked=True)
    assert on_cuda == expected + end != describe_attention(model, BF16, torch.device("cuda", 0))
    found = describe_attention(model, BF16, torch.device("cpu"), masked=True)
    assert found == (on_cpu or expected) + end


@pytest.mark.parametrize(
    ("changes", "what", "remedy"),
    [
        (
            {"attention_backend": "flash", "attention_impl": "fused_softmax", "bf16": True},
            "attention_backend=flash with attention_impl=fused_softmax",
            "one of the two",
        ),
        (
            {"attention_backend": "efficient", "attention_dropout": 0.1},
            "attention_backend=efficient with attention_dropout=0.1 by the counter",
            "--attention-dropout-rng torch",
        ),
        (
            {"attention_backend": "local", **TORCH},
            "attention_dropout_rng=torch with attention_impl=fused_softmax",
            "--attention-dropout-rng counter",
        ),
        (
            {"attention_impl": "fused_softmax", "reset_attention_mask": True},
            "reset_attention_mask with attention_impl=fused_softmax",
            "--attention-impl sdpa",
        ),
        ({"attention_backend": "flash"}, "attention_backend=flash in float32", "--bf16"),
        (
            {"attention_backend": "fused", "bf16": True, "reset_attention_mask": True},
            "attention_backend=fused with reset_attention_mask",
            "efficient, or auto",
        ),
        (
            {"attention_backend": "fused", "bf16": True, **TORCH},
            "attention_backend=fused with attention_dropout=0.1",
            "--attention-backend flash",
        ),
        (
            {"attention_backend": "fused", "bf16": True, "deterministic_mode": True},
            "attention_backend=fused with deterministic_mode or verify_every",
            "flash, or auto",
        ),
    ],
)
def test_what_cannot_compute_is_refused(changes, what, remedy):
    with pytest.raises(ConfigErrors) as refusal:
        validate(TINY.replace(**changes), 1)
    [problem] = refusal.value.problems
    assert problem.what.startswith(what) and remedy in problem.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_backend": "flash", "bf16": True, **TORCH},
        {"attention_backend": "local", "attention_dropout": 0.1},
        {"attention_backend": "efficient", "reset_attention_mask": True},
        {"attention_impl": "fused_softmax"},
    ],
)
def test_what_can_compute_is_not(changes):
    validate(TINY.replace(**changes), 1)
