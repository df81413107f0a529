"""Perplexity: how many tokens the model hesitates between, on average, before each that is learned.

Texts longer than the model's positions are read in windows of T tokens that begin every `stride`
tokens. Each window predicts what the ones before it have not: every token counts exactly once.

    stride = T   disjoint windows: the cheapest; the first tokens of each see little before them
    stride < T   sliding windows: from the second on, T - stride tokens at least stand before each
                 token that counts; T / stride times the work

Source of the two: https://huggingface.co/docs/transformers/perplexity
"""

import numpy as np
import torch

from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.loader import Batch, Dataset
from megatron_yuyuan.errors import ConfigError, DataError
from megatron_yuyuan.model.gpt2 import GPT2


class Windows:
    """The documents of a shard as windows: sample i is (tokens, labels), (t,) int64 each, t <= T.

    A shard of texts is one stream, in which documents see those before them, as in pretraining;
    all but its first token are predicted. Of a pair, which stands alone, the answer and its end of
    text are predicted, and nothing is cut off. Pairs come in the order of their lengths.

    Raises ConfigError: no such windows; DataError: no token to predict.
    """

    def __init__(
        self, shard: IndexedDataset, seq_length: int, stride: int, documents: range | None = None
    ):
        if not 1 <= stride <= seq_length:
            raise ConfigError(
                f"stride={stride} with seq_length={seq_length}",
                "windows further apart than their length would pass over tokens",
                f"1 to {seq_length}; {seq_length} for disjoint windows",
            )
        documents = range(shard.num_documents) if documents is None else documents
        begins, firsts, ends = _pairs(shard, documents) or _stream(shard, documents)
        kept = np.flatnonzero(firsts < ends)
        kept = kept[np.argsort((ends - begins)[kept], kind="stable")]
        if not len(kept):
            raise DataError(
                f"{shard.prefix}: no token to predict in documents {documents.start} to {documents.stop}",
                "a token is predicted from those before it",
                "a shard or a part of it with texts or answers",
            )
        self._shard, self._seq_length, self._stride = shard, seq_length, stride
        self._begins, self._firsts, self._ends = begins[kept], firsts[kept], ends[kept]
        beyond = np.maximum(self._ends - self._begins - 1 - seq_length, 0)
        self._stops = np.cumsum(1 + -(-beyond // stride))
        self.tokens = int((self._ends - self._firsts).sum())
        """Tokens that are predicted."""

    def __len__(self) -> int:
        return int(self._stops[-1])

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        text = int(np.searchsorted(self._stops, number, side="right"))
        place = number - (int(self._stops[text - 1]) if text else 0)  # among the text's windows
        begin, first, end = (int(of[text]) for of in (self._begins, self._firsts, self._ends))
        start = begin + place * self._stride
        stop = min(start + self._seq_length + 1, end)
        if place:  # the window before ended its labels there
            first = max(first, start - self._stride + self._seq_length + 1)
        read = self._shard.tokens(start, stop).astype(np.int64)
        labels = read[1:].copy()
        labels[: max(0, first - start - 1)] = IGNORE
        return read[:-1], labels


Spans = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of every text: where it begins, its first token that is predicted, where it ends. (n,) int64 each,
counted in tokens of the shard."""


def _pairs(shard: IndexedDataset, documents: range) -> Spans | None:
    """Every document by itself, its first sequence given; None where not all have two sequences."""
    if not np.array_equal(shard.document_indices, 2 * np.arange(shard.num_documents + 1)):
        return None
    starts = shard.document_starts(np.arange(documents.start, documents.stop + 1))
    prompts = shard.sequence_lengths[0::2][documents.start : documents.stop]
    return starts[:-1], starts[:-1] + np.maximum(prompts, 1), starts[1:]


def _stream(shard: IndexedDataset, documents: range) -> Spans:
    """All documents as one text."""
    begin, end = shard.document_start(documents.start), shard.document_start(documents.stop)
    return np.array([begin]), np.array([begin + 1]), np.array([end])


@torch.inference_mode()
def perplexity(model: GPT2, dataset: Dataset, batch_size: int = 8) -> dict:
    """{"loss": nats a token, "perplexity": exp(loss), "tokens": labels} over one epoch of samples.

    The sum of all losses over the number of all labels, never a mean of means: samples of any
    length weigh by their tokens, and batch_size changes the time alone. `model` is in eval mode.
    Raises DataError: nothing is learned there.
    """
    loss, tokens = 0.0, 0
    for first in range(0, len(dataset), batch_size):
        samples = [dataset[n] for n in range(first, min(first + batch_size, len(dataset)))]
        batch = _padded(samples).to(model.device)
        losses, count = model(batch.tokens, labels=batch.labels, step=0, **batch.model_inputs())
        loss, tokens = loss + losses.item(), tokens + int(count.item())
    if not tokens:
        raise DataError(
            f"no label to predict in {len(dataset)} samples",
            "a mean of nothing is not a number",
            "data with at least one token after a prompt",
        )
    return per_token(loss, tokens)


def per_token(loss: float, tokens: int) -> dict:
    """A summed loss as `perplexity` returns it."""
    mean = torch.tensor(loss / tokens, dtype=torch.float64)
    return {"loss": mean.item(), "perplexity": mean.exp().item(), "tokens": tokens}


def _padded(samples: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Samples of any lengths as one batch. What fills the short ones stands after their tokens, which
    attend only to what is before them, and is not learned."""
    shape = len(samples), max(len(tokens) for tokens, _ in samples)
    tokens = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORE)
    for row, (read, learned) in enumerate(samples):
        tokens[row, : len(read)] = torch.from_numpy(read)
        labels[row, : len(learned)] = torch.from_numpy(learned)
    positions = torch.arange(shape[1]).expand(shape).contiguous()
    return Batch(tokens, labels, positions, torch.arange(shape[0]))
