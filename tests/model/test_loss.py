"""The loss in chunks: the value and the gradients of the loss in one piece, in bounded memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.kernels import Kernels, VocabularyRows
from megatron_yuyuan.model import loss as loss_module
from megatron_yuyuan.model.chunks import LOGITS_ON_CUDA, TILE, chunk_length
from megatron_yuyuan.model.loss import LanguageModelHead, linear_cross_entropy

B, T, C, V, VOCAB = 3, 7, 16, 128, 101


def inputs(dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight, labels; a third of the labels is not learned."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(B, T, C, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(V, C, generator=draw).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCAB, (B, T), generator=draw)
    labels.view(-1)[::3] = IGNORE
    return x, weight, labels


def in_one_piece(x, weight, labels) -> torch.Tensor:
    logits = F.linear(x, weight[:VOCAB]).float().flatten(0, 1)
    return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="sum")


@pytest.fixture(params=[1, 4 * V, 5 * V + 1, 1 << 24], ids=["1", "4", "5", "all"])
def chunk(request, monkeypatch):
    """Tokens of a chunk: one, a divisor of none, all."""
    monkeypatch.setattr(loss_module, "LOGITS_AT_A_TIME", request.param)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)],
    ids=["float32", "bf16", "fp16"],
)
def test_loss_and_gradients_are_those_of_all_logits_at_once(chunk, dtype, bound):
    x, weight, labels = inputs(dtype)
    total, count = LanguageModelHead(VOCAB, Kernels())(x, weight, labels)
    assert count.item() == 14
    assert (total.dtype, total.shape) == (torch.float32, (1,))
    (total / 3).sum().backward()
    expected_x, expected_weight, _ = inputs(dtype)
    expected = in_one_piece(expected_x, expected_weight, labels)
    (expected / 3).backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    for actual, reference in ((x.grad, expected_x.grad), (weight.grad, expected_weight.grad)):
        assert actual.dtype == dtype
        difference = (actual.float() - reference.float()).abs().max()
        assert difference <= 10 * bound * reference.float().abs().max()
    assert not weight.grad[VOCAB:].any()


@pytest.mark.parametrize("tokens", [1, 7, 64, 320, 1000, 8192, 16384])
@pytest.mark.parametrize("limit", [1, 4, 64, 65, 200, 5336])
def test_chunks_are_within_the_limit_and_about_as_long_as_each_other(tokens, limit):
    length = chunk_length(tokens, 50304, 50304 * limit + 50303)
    assert 1 <= length <= min(tokens, limit)
    assert length % TILE == 0 or length == tokens or limit <= TILE
    if limit >= TILE:
        last = tokens - (tokens - 1) // length * length
        assert last > length - TILE * -(-tokens // length)


def test_the_chunks_of_the_3_5b_model_on_a_gpu():
    samples = {4: 4096, 8: 4096, 16: 4096, 3: 3072}  # of a micro batch, of 1,024 tokens each
    assert {b: chunk_length(1024 * b, 50304, LOGITS_ON_CUDA) for b in samples} == samples


def test_a_sum_over_tokens_may_leave_the_range_of_float16():
    """The weight's gradient of 20000 alike tokens, before it is divided by their number."""
    x = torch.full((1, 20000, 4), 8.0, dtype=torch.float16)
    weight = torch.zeros(V, 4, dtype=torch.float16, requires_grad=True)
    labels = torch.zeros(x.shape[:2], dtype=torch.int64)
    total, count = LanguageModelHead(VOCAB, Kernels())(x, weight, labels)
    (total / count).sum().backward()
    expected = torch.full((VOCAB, 4), 8 / VOCAB)
    expected[0] -= 8
    assert expected[0, 0] * 20000 < torch.finfo(torch.float16).min
    torch.testing.assert_close(weight.grad[:VOCAB].float(), expected, rtol=1e-3, atol=0)


def test_rows_held_apart_give_what_they_give_together():
    """Two holders of half the rows, one after the other; what they exchange is computed beforehand."""
    x, weight, labels = inputs()
    logits = F.linear(x, weight[:VOCAB]).flatten(0, 1)
    label = logits.gather(-1, labels.flatten().clamp(min=0)[:, None]).squeeze(-1)
    largest = logits.amax(-1)
    exchanged = torch.stack((torch.exp(logits - largest[:, None]).sum(-1), label - largest))

    class Exchanged(VocabularyRows):
        def maximum(self, x):
            return largest

        def total(self, x):
            return exchanged

    gradients = []
    for first in (0, 64):
        half = weight[first : first + 64].detach().requires_grad_()
        own = x.detach().requires_grad_()
        rows = Exchanged(VOCAB, first)
        loss = linear_cross_entropy(own, half, labels, rows, Kernels())
        assert loss.item() == pytest.approx(in_one_piece(x, weight, labels).item(), rel=1e-6)
        loss.sum().backward()
        gradients.append((own.grad, half.grad))
    in_one_piece(x, weight, labels).backward()
    torch.testing.assert_close(gradients[0][0] + gradients[1][0], x.grad)
    torch.testing.assert_close(torch.cat([g for _, g in gradients]), weight.grad)


def test_a_batch_without_labels_to_learn_has_loss_and_gradient_zero():
    x, weight, labels = inputs()
    total, count = LanguageModelHead(VOCAB, Kernels())(x, weight, torch.full_like(labels, IGNORE))
    total.sum().backward()
    assert total.item() == count.item() == 0
    assert not x.grad.any()
    assert not weight.grad.any()


def test_gradients_reach_whoever_asks_again():
    """A schedule that divides the backward runs it twice over the same graph."""
    x, weight, labels = inputs()
    loss = LanguageModelHead(VOCAB, Kernels())(x, weight, labels)[0].sum()
    [to_x] = torch.autograd.grad(loss, x, retain_graph=True)
    [to_weight] = torch.autograd.grad(loss, weight)
    in_one_piece(x, weight, labels).backward()
    torch.testing.assert_close(to_x, x.grad)
    torch.testing.assert_close(to_weight, weight.grad)


class ShapesSeen(TorchDispatchMode):
    """The shapes of everything that is computed inside."""

    def __init__(self):
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.shapes.add(tuple(tensor.shape))
        return result


def test_no_more_logits_exist_than_were_allowed(monkeypatch):
    monkeypatch.setattr(loss_module, "LOGITS_AT_A_TIME", 5 * V)
    x, weight, labels = inputs()
    with ShapesSeen() as seen:
        LanguageModelHead(VOCAB, Kernels())(x, weight, labels)[0].sum().backward()
    logits = [shape for shape in seen.shapes if shape[-1:] in ((V,), (VOCAB,))]
    assert max(torch.Size(shape).numel() for shape in logits if shape[0] != C) == 5 * V
    with ShapesSeen() as seen:
        in_one_piece(x, weight, labels).backward()
    assert (B * T, VOCAB) in seen.shapes  # it would be seen


def test_evaluation_computes_no_gradient():
    x, weight, labels = inputs()
    with torch.no_grad(), ShapesSeen() as seen:
        LanguageModelHead(VOCAB, Kernels())(x, weight, labels)
    assert (V, C) not in seen.shapes
    with ShapesSeen() as seen:
        LanguageModelHead(VOCAB, Kernels())(x, weight, labels)
    assert (V, C) in seen.shapes  # the gradient of the weight
