"""The end of the model: hidden states to logits, or straight to the loss."""

import torch
from torch import Tensor, nn

from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.kernels import Kernels, VocabularyRows
from megatron_yuyuan.model.chunks import LOGITS_AT_A_TIME, LOGITS_ON_CUDA, chunk_length
from megatron_yuyuan.model.decoding import next_logits


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

    def __init__(self, vocab_size: int, kernels: Kernels):
        super().__init__()
        self.vocab_size, self.kernels = vocab_size, kernels

    def forward(self, x: Tensor, weight: Tensor, labels: Tensor | None):
        if labels is None:
            return next_logits(x, weight[: self.vocab_size])
        rows = VocabularyRows(self.vocab_size)
        loss = linear_cross_entropy(x, weight, labels, rows, self.kernels)
        return loss, count_labels(labels)


def count_labels(labels: Tensor) -> Tensor:
    """Number of labels that are learned, (1,) float32."""
    return torch.sum(labels.flatten() != IGNORE, 0, keepdim=True, dtype=torch.float32)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, labels: Tensor, rows: VocabularyRows, kernels: Kernels
) -> Tensor:
    """Sum over the learned labels of log(sum over v of exp(z_v)) - z_label, z = x W^T.

        x       (B, T, C)
        weight  (R, C)   the rows that are held here, of V
        labels  (B, T)   int64, IGNORE where nothing is learned
        return  (1,) float32; its gradient reaches x through the rows held here alone

    No more than LOGITS_AT_A_TIME (LOGITS_ON_CUDA) of the B T R logits exist at any time.
    """
    return _LinearCrossEntropy.apply(x, weight, labels, rows, kernels, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss and both gradients, a chunk of tokens after the other, all in the forward.

    The backward would need the softmax again. It is there in the forward, so the gradients of a loss
    of weight 1 are taken from it at once, (B, T, C) and (R, C), and the backward multiplies them by the
    weight that the loss turns out to have. Three matrix products, as without chunks. Source: Hsu et
    al. 2024, arXiv:2410.10989, section 3.2; over the ranks: arXiv:1909.08053, section 3.

    Logits have the dtype of x; what is computed from them is float32, and so is the sum over chunks of
    the weight's gradient, of which there is none where the weight is frozen.
    """

    @staticmethod
    def forward(ctx, x, weight, labels, rows, kernels, learning):
        hidden, labels = x.flatten(0, 1), labels.flatten()
        loss, weight_gradient = torch.zeros(1, device=x.device), None
        if learning:
            hidden_gradient = torch.empty_like(hidden)
        limit = LOGITS_ON_CUDA if x.is_cuda else LOGITS_AT_A_TIME
        length = chunk_length(len(hidden), len(weight), limit)
        memory = hidden.new_empty(length, len(weight))  # of each chunk in turn
        for start in range(0, len(hidden), length):
            part = slice(start, start + length)
            logits = memory[: len(labels[part])]
            torch.mm(hidden[part], weight.t(), out=logits)
            part_loss, gradient = kernels.cross_entropy(logits, labels[part], rows)
            loss += part_loss
            if learning:
                torch.mm(gradient.to(x.dtype), weight, out=hidden_gradient[part])
                if ctx.needs_input_grad[1]:
                    weight_gradient = _add_product(weight_gradient, gradient.t(), hidden[part])
        if learning:
            ctx.save_for_backward(hidden_gradient.view_as(x), weight_gradient)
        return loss

    @staticmethod
    def backward(ctx, scale):
        hidden_gradient, weight_gradient = ctx.saved_tensors

        def scaled(gradient: Tensor) -> Tensor:  # one pass, rounded once
            result = torch.empty_like(gradient, dtype=hidden_gradient.dtype)
            return torch.mul(gradient, scale, out=result)

        of_weight = None if weight_gradient is None else scaled(weight_gradient)
        return scaled(hidden_gradient), of_weight, None, None, None, None


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a b in float32, in the place of total if there is one. a may be more exact than b."""
    if b.is_cuda and b.dtype != torch.float32:
        product = torch.mm(a.to(b.dtype), b, out_dtype=torch.float32)
    elif b.dtype == torch.bfloat16:  # the CPU's product is rounded to it
        product = a.to(b.dtype) @ b
    elif total is not None:  # float16: a sum over tokens is outside its range
        return total.addmm_(a.float(), b.float())
    else:
        product = a.float() @ b.float()
    return product.float() if total is None else total.add_(product)
