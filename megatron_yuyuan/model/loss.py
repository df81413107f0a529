"""The end of the model: hidden states to logits, or straight to the loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_yuyuan.config import IGNORE


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
        logits = F.linear(x, weight[: self.vocab_size])
        if labels is None:
            return logits
        loss = F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none"
        )
        return loss.sum(0, keepdim=True), count_labels(labels)


def count_labels(labels: Tensor) -> Tensor:
    """Number of labels that are learned, (1,) float32."""
    return torch.sum(labels.flatten() != IGNORE, 0, keepdim=True, dtype=torch.float32)
