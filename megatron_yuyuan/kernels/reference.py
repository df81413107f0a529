"""The definition of every kernel, in plain PyTorch. A fused kernel is right when it agrees with
these.

Arithmetic is float32 whatever the dtype of the tensors, and what is returned is rounded once. B
samples, T tokens, C hidden_size; `mask` is None where nothing is dropped.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.kernels.mask import DropoutMask
from megatron_yuyuan.kernels.vocabulary import VocabularyRows


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """y = (x - mean) / sqrt(var + epsilon) * weight + bias over the last dim. x, return (B, T, C);
    weight, bias (C,).

    Source: Ba et al. 2016, arXiv:1607.06450.
    """
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def norm_beside(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(x, layer_norm(x)), both (B, T, C): x goes on beside its norm, as a residual stream does.

    One call because the gradients of both can be added in the pass that computes the norm's.
    """
    return x, layer_norm(x, weight, bias, epsilon)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GPT-2's `gelu_new` of u = x + bias: 0.5 u (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3))). x, return
    (B, T, F); bias (F,). u has the dtype of x: kept in float32 for the backward it would take twice the
    memory. The fused kernel does not round it. Source: arXiv:1606.08415."""
    return F.gelu(x + bias, approximate="tanh")


def dropout(x: Tensor, mask: DropoutMask | None) -> Tensor:
    """x (..., C) with the elements that the mask drops zeroed and the others scaled by 1 / (1 - p)."""
    return x if mask is None else mask.apply(x.float()).to(x.dtype)


def bias_dropout_add(x: Tensor, bias: Tensor, residual: Tensor, mask: DropoutMask | None) -> Tensor:
    """residual + dropout(x + bias). x, residual, return (B, T, C); bias (C,)."""
    branch = x.float() + bias.float()
    if mask is not None:
        branch = mask.apply(branch)
    return (residual.float() + branch).to(x.dtype)


def bias_dropout_add_norm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    mask: DropoutMask | None,
    weight: Tensor,
    norm_bias: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """(sum, layer_norm(sum)) of the rounded sum = residual + dropout(x + bias), both (B, T, C)."""
    return norm_beside(bias_dropout_add(x, bias, residual, mask), weight, norm_bias, epsilon)


def cross_entropy(logits: Tensor, labels: Tensor, rows: VocabularyRows) -> tuple[Tensor, Tensor]:
    """The loss of n tokens and its gradient in the logits, which it overwrites.

        logits  (n, R)  of the R rows of the vocabulary that are held here; lost
        labels  (n,)    int64, IGNORE where nothing is learned
        return  () float32, sum over the learned labels of log(sum over v of exp(z_v)) - z_label;
                (n, R) float32, softmax - onehot, 0 where nothing is learned and at padding

    Two exchanges of n numbers: the largest logit; then the sum of exponentials and the label's
    logit, together. The gradient is local. Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
    """
    z = logits.float()
    real = rows.real(z.shape[-1])
    z[:, real:] = -math.inf
    z -= rows.maximum(z.amax(-1))[:, None]
    column = labels - rows.first
    elsewhere = (column < 0) | (column >= real)
    column = column.masked_fill(elsewhere, 0)[:, None]
    target = z.gather(-1, column).squeeze(-1).masked_fill(elsewhere, 0.0)
    z.exp_()
    total, target = rows.total(torch.stack((z.sum(-1), target)))
    learned = labels != IGNORE
    loss = torch.where(learned, total.log() - target, 0.0).sum()
    z *= (learned / total)[:, None]
    z.scatter_add_(-1, column, -(learned & ~elsewhere).float()[:, None])
    return loss, z


def causal_softmax(scores: Tensor, scale: float) -> Tensor:
    """softmax of scores * scale over the tokens that a query sees, 0 at the others. scores, return (...,
    T, S): the queries are the last T of S tokens.

    Source: Megatron-LM's `scaled_upper_triang_masked_softmax`.
    """
    queries, keys = scores.shape[-2:]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril(keys - queries)
    return (scores.float() * scale).masked_fill(~seen, -math.inf).softmax(-1).to(scores.dtype)


def largest(x: Tensor) -> Tensor:
    """max |x| over a whole tensor, () float32; NaN if x has one."""
    low, high = torch.aminmax(x)
    return torch.maximum(high, -low).float()


def to_float8(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x / scale in a float8 format, clamped to its range. x, return (...); scale () float32. What is not
    finite becomes NaN."""
    limit = torch.finfo(dtype).max
    return (x.float() / scale).clamp(-limit, limit).to(dtype)


def transposed(x: Tensor) -> Tensor:
    """(M, K) -> (K, M), by its rows: tensor cores take float8 factors by the dim that is summed alone."""
    return x.t().contiguous()


def float8_product(
    a: Tensor,
    b: Tensor,
    scales: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    bias: Tensor | None = None,
    fast: bool = False,
) -> Tensor:
    """scale_a scale_b (a b^T) + bias of float8 numbers.

        a, b    (M, K), (N, K) float8; both by their rows
        scales  those of a and b, () float32 each
        bias    (N,), or None
        fast    whether tensor cores may add up all K terms in their own registers, which have fewer
                digits than float32; here they never do
        return  (M, N) of `dtype`

    Float8 numbers are exact in float32, and so are the products of two of them.
    """
    result = a.float() @ b.float().t() * (scales[0] * scales[1])
    return (result if bias is None else result + bias.float()).to(dtype)
