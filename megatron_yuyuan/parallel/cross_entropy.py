"""The head over a divided vocabulary: no rank ever holds the logits of all tokens of the
vocabulary."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.model.loss import LanguageModelHead, count_labels
from megatron_yuyuan.parallel.collectives import all_reduced, gather_last
from megatron_yuyuan.parallel.tensor import TensorAxis


class VocabParallelHead(nn.Module):
    """`LanguageModelHead` with the rows of the embedding divided over the tensor axis; same
    arguments and results.

        weight  (V, C)  DTensor Shard(0); local (V / tensor, C)

    With sequence parallelism x comes as (B, T / tensor, C) and is gathered first.
    """

    def __init__(self, head: LanguageModelHead, axis: TensorAxis):
        super().__init__()
        self.vocab_size, self.axis = head.vocab_size, axis

    def forward(self, x: Tensor, weight: Tensor, labels: Tensor | None):
        local = weight.to_local()
        logits = F.linear(self.axis.enter(x), local)
        if labels is None:
            return gather_last(logits.detach(), self.axis.group)[..., : self.vocab_size]
        first = self.axis.rank * local.shape[0]
        loss = VocabParallelCrossEntropy.apply(
            logits, labels, first, self.vocab_size, self.axis.group
        )
        return loss, count_labels(labels)


class VocabParallelCrossEntropy(torch.autograd.Function):
    """Sum over the learned labels of log(sum over v of exp(z_v)) - z_label, each rank holding some
    of the z.

        logits      (B, T, V / tensor), columns first, first + 1, ... of the vocabulary
        labels      (B, T) int64, IGNORE where nothing is learned
        vocab_size  columns from here on are padding: they take no part
        return      (1,) float32

    Three all-reduces of (B, T): the maximum, the sum of exponentials, the label's logit. The
    gradient, softmax - onehot, is local. Source: arXiv:1909.08053, section 3.
    """

    @staticmethod
    def forward(ctx, logits, labels, first, vocab_size, group):
        z = logits.float()
        real = min(max(vocab_size - first, 0), z.shape[-1])
        if real < z.shape[-1]:
            z = z.index_fill(-1, torch.arange(real, z.shape[-1], device=z.device), -math.inf)
        largest = all_reduced(z.amax(-1), group, dist.ReduceOp.MAX)
        exponentials = torch.exp(z - largest[..., None])
        total = all_reduced(exponentials.sum(-1), group)
        column = labels - first
        elsewhere = (column < 0) | (column >= real)
        column = column.masked_fill(elsewhere, 0)
        target = (z.gather(-1, column[..., None]).squeeze(-1) - largest).masked_fill(elsewhere, 0.0)
        target = all_reduced(target, group)
        learned = labels != IGNORE
        ctx.save_for_backward(exponentials.div_(total[..., None]), column, elsewhere, learned)
        ctx.dtype = logits.dtype
        return torch.where(learned, total.log() - target, 0.0).flatten().sum(0, keepdim=True)

    @staticmethod
    def backward(ctx, gradient):
        softmax, column, elsewhere, learned = ctx.saved_tensors
        result = softmax * (learned * gradient)[..., None]
        onehot = (learned & ~elsewhere) * gradient
        result.scatter_add_(-1, column[..., None], -onehot[..., None])
        return result.to(ctx.dtype), None, None, None, None
