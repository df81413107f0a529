"""The end of the model: hidden states to logits, or straight to the loss."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_yuyuan.config import IGNORE

LOGITS_AT_A_TIME = 1 << 24
"""Logits that the loss holds at once, 64 MiB in float32: large enough for the matrix products to run
at full speed, small beside the activations of a layer."""
TILE = 64
"""Tokens of a long chunk are a multiple of this: matrix products work in tiles."""


@dataclass(frozen=True)
class VocabularyRows:
    """Which rows of the vocabulary a head's weight holds, and how what they say is put together.

    This is the head that holds all rows. The one of a tensor rank stands in
    `parallel/cross_entropy.py`.
    """

    vocab_size: int
    """Tokens of the whole vocabulary; rows of larger numbers are padding."""
    first: int = 0
    """The token of the weight's first row."""

    def maximum(self, x: Tensor) -> Tensor:
        """The elementwise maximum of x over all who hold rows."""
        return x

    def total(self, x: Tensor) -> Tensor:
        """The elementwise sum of x over all who hold rows."""
        return x


class LanguageModelHead(nn.Module):
    """Logits of the tied embedding, or their cross entropy with the next tokens.

        x       (B, T, C)
        weight  (V, C)    the token embedding; rows from vocab_size on are padding and never predicted
        labels  (B, T)    int64, IGNORE where nothing is learned; or None
        return  (B, T, vocab_size) logits without labels;
                with labels ((1,) summed loss in float32, (1,) number of labels learned)

    Sum and count, never a mean: the loss of a step is divided once, by all its tokens. One element
    each because a pipeline schedule concatenates what its micro batches return. The parallel plan
    exchanges this module for `VocabParallelHead`.
    """

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, x: Tensor, weight: Tensor, labels: Tensor | None):
        if labels is None:
            return F.linear(x, weight[: self.vocab_size])
        loss = linear_cross_entropy(x, weight, labels, VocabularyRows(self.vocab_size))
        return loss, count_labels(labels)


def count_labels(labels: Tensor) -> Tensor:
    """Number of labels that are learned, (1,) float32."""
    return torch.sum(labels.flatten() != IGNORE, 0, keepdim=True, dtype=torch.float32)


def linear_cross_entropy(x: Tensor, weight: Tensor, labels: Tensor, rows: VocabularyRows) -> Tensor:
    """Sum over the learned labels of log(sum over v of exp(z_v)) - z_label, z = x W^T.

        x       (B, T, C)
        weight  (R, C)   the rows that are held here, of V
        labels  (B, T)   int64, IGNORE where nothing is learned
        return  (1,) float32; its gradient reaches x through the rows held here alone

    No more than LOGITS_AT_A_TIME of the B T R logits exist at any time.
    """
    return _LinearCrossEntropy.apply(x, weight, labels, rows, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss and both gradients, a chunk of tokens after the other, all in the forward.

    The backward would need the softmax again. It is there in the forward, so the gradients of a loss
    of weight 1 are taken from it at once, (B, T, C) and (R, C), and the backward multiplies them by the
    weight that the loss turns out to have. Three matrix products, as without chunks. Source: Hsu et
    al. 2024, arXiv:2410.10989, section 3.2; over the ranks: arXiv:1909.08053, section 3.

    Logits and softmax are float32 whatever the dtype of x; so is the sum over chunks of the weight's
    gradient.
    """

    @staticmethod
    def forward(ctx, x, weight, labels, rows, learning):
        hidden, labels = x.flatten(0, 1), labels.flatten()
        loss = torch.zeros(1, device=x.device)
        if learning:
            hidden_gradient = torch.empty_like(hidden)
            weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        length = _chunk_length(len(weight))
        memory = hidden.new_empty(min(length, len(hidden)), len(weight))  # of each chunk in turn
        for start in range(0, len(hidden), length):
            part = slice(start, start + length)
            logits = memory[: len(labels[part])]
            torch.mm(hidden[part], weight.t(), out=logits)
            part_loss, gradient = _chunk(logits, labels[part], rows)
            loss += part_loss
            if learning:
                rounded = gradient.to(x.dtype)
                torch.mm(rounded, weight, out=hidden_gradient[part])
                if x.dtype == torch.float16:  # a sum over tokens is outside its range
                    weight_gradient.addmm_(gradient.t(), hidden[part].float())
                else:
                    _add_product(weight_gradient, rounded.t(), hidden[part])
        if learning:
            ctx.save_for_backward(hidden_gradient.view_as(x), weight_gradient)
        return loss

    @staticmethod
    def backward(ctx, scale):
        hidden_gradient, weight_gradient = ctx.saved_tensors
        dtype = hidden_gradient.dtype
        return (
            (hidden_gradient * scale).to(dtype),
            (weight_gradient * scale).to(dtype),
            *(None, None, None),
        )


def _chunk_length(columns: int) -> int:
    """Tokens whose logits are within LOGITS_AT_A_TIME: one at least, whole TILEs if that many."""
    length = max(1, LOGITS_AT_A_TIME // columns)
    return length - length % TILE if length > TILE else length


def _chunk(logits: Tensor, labels: Tensor, rows: VocabularyRows) -> tuple[Tensor, Tensor]:
    """Summed loss () of a chunk of n tokens, and its gradient in their logits (n, R), in their place
    where they are float32.

    Two exchanges of n numbers: the largest logit; then the sum of exponentials and the label's
    logit, together. The gradient, softmax - onehot, is local.
    """
    z = logits.float()
    real = min(max(rows.vocab_size - rows.first, 0), z.shape[-1])
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


def _add_product(result: Tensor, a: Tensor, b: Tensor) -> None:
    """result (float32) += a b, without a copy of the product where the dtypes allow."""
    if a.dtype == result.dtype:
        result.addmm_(a, b)
    else:
        result += a @ b
