"""The head over a divided vocabulary: no rank ever holds the logits of all tokens of the
vocabulary, or of all its own rows at once."""

from dataclasses import dataclass, field

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from megatron_yuyuan.kernels import VocabularyRows
from megatron_yuyuan.model.loss import LanguageModelHead, count_labels, linear_cross_entropy
from megatron_yuyuan.parallel.collectives import all_gather_last, all_reduced
from megatron_yuyuan.parallel.tensor import TensorAxis


@dataclass(frozen=True)
class RowsOfRank(VocabularyRows):
    """The rows of one tensor rank; the others hold the rest."""

    group: ProcessGroup = field(kw_only=True)
    """The ranks of the tensor axis."""

    def maximum(self, x: Tensor) -> Tensor:
        return x if self.group.size() == 1 else all_reduced(x, self.group, dist.ReduceOp.MAX)

    def total(self, x: Tensor) -> Tensor:
        return x if self.group.size() == 1 else all_reduced(x, self.group)


class VocabParallelHead(nn.Module):
    """`LanguageModelHead` with the rows of the embedding divided over the tensor axis; same
    arguments and results.

        weight  (V, C)  DTensor Shard(0); local (V / tensor, C)

    With sequence parallelism x comes as (B, T / tensor, C) and is gathered first. Two all-reduces of
    each chunk of tokens: the maximum; the sum of exponentials with the label's logit. The backward
    sums the gradient of x over the axis (sequence parallel: and scatters it), once for all chunks.
    Source: arXiv:1909.08053, section 3.
    """

    def __init__(self, head: LanguageModelHead, axis: TensorAxis):
        super().__init__()
        self.vocab_size, self.kernels, self.axis = head.vocab_size, head.kernels, axis

    def forward(self, x: Tensor, weight: DTensor, labels: Tensor | None):
        x, local = self.axis.enter(x), weight.to_local()
        if labels is None:
            logits = F.linear(x, local).detach()
            return all_gather_last(logits, self.axis.group)[..., : self.vocab_size]
        rows = RowsOfRank(self.vocab_size, self.axis.rank * len(local), group=self.axis.group)
        loss = linear_cross_entropy(x, local, labels, rows, self.kernels)
        return loss, count_labels(labels)
