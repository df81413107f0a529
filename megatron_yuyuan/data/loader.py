"""Batches: which samples a data rank reads at a step, as tensors."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from megatron_yuyuan.config import IGNORE


class Dataset(Protocol):
    """Samples by number. A number beyond the end goes on with the next epoch."""

    def __len__(self) -> int:
        """Samples of one epoch."""
        ...

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens (T,), labels (T,)) int64; labels[t] is the token after tokens[t], or IGNORE."""
        ...


@dataclass(frozen=True)
class Borders:
    """What happens inside a sample where one document ends and the next begins.

    A document ends with its end of text, as in Megatron-LM: that token belongs to the document
    before it. Source: `_get_ltor_masks_and_position_ids` of megatron/core/datasets/gpt_dataset.py.
    """

    eod: int
    """Id of the end of text."""
    reset_position_ids: bool = False
    """Count positions from 0 in every document."""
    reset_attention_mask: bool = False
    """Attend only within a document."""
    eod_mask_loss: bool = False
    """Learn nothing at an end of text: its label, the next document's first token, is a guess."""


@dataclass(frozen=True)
class Batch:
    """Samples as the model takes them."""

    tokens: Tensor
    """(B, T) int64"""
    labels: Tensor
    """(B, T) int64, IGNORE where nothing is learned"""
    positions: Tensor
    """(B, T) int64"""
    sample_ids: Tensor
    """(B,) int64, number of each sample in the global batch"""
    document_ids: Tensor | None = None
    """(B, T) int64, number of each token's document in its sample; None: attend to all before"""

    def model_inputs(self) -> dict[str, Tensor]:
        """What every stage of the model needs beside its input."""
        inputs = {"positions": self.positions, "sample_ids": self.sample_ids}
        return inputs if self.document_ids is None else inputs | {"document_ids": self.document_ids}

    def split(self, portions: int) -> list["Batch"]:
        """Equal micro batches, in order."""
        parts = {name: t.chunk(portions) for name, t in vars(self).items() if t is not None}
        return [Batch(**{name: part[i] for name, part in parts.items()}) for i in range(portions)]

    def to(self, device) -> "Batch":
        """The same on a device."""
        moved = {n: t.to(device, non_blocking=True) for n, t in vars(self).items() if t is not None}
        return Batch(**moved)


def read_batch(
    dataset: Dataset,
    consumed: int,
    size: int,
    rank: int,
    ranks: int,
    device,
    limit: int | None = None,
    borders: Borders | None = None,
) -> Batch:
    """A data rank's share of the global batch that begins after `consumed` samples.

    The global batch is samples consumed, ..., consumed + size - 1; rank r of `ranks` takes the r-th
    run of size / ranks of them. Samples from `limit` on are read again from the front and nothing
    of them is learned: so the last batch of an evaluation is as large as the others.
    """
    share = size // ranks
    numbers = range(consumed + rank * share, consumed + (rank + 1) * share)
    samples = [dataset[n if limit is None or n < limit else n % limit] for n in numbers]
    tokens = torch.from_numpy(np.stack([tokens for tokens, _ in samples]))
    labels = torch.from_numpy(np.stack([labels for _, labels in samples]))
    if limit is not None:
        labels[torch.tensor([n >= limit for n in numbers])] = IGNORE
    positions = torch.arange(tokens.shape[1]).expand_as(tokens).contiguous()
    sample_ids = torch.arange(rank * share, (rank + 1) * share)
    batch = Batch(tokens, labels, positions, sample_ids)
    return (batch if borders is None else divide_documents(batch, borders)).to(device)


def divide_documents(batch: Batch, borders: Borders) -> Batch:
    """The batch with positions, attention and labels as `borders` asks."""
    tokens, labels, positions, document_ids = batch.tokens, batch.labels, batch.positions, None
    ends = tokens == borders.eod
    follows = ends.roll(1, dims=1)  # the first token of a document
    follows[:, 0] = False
    if borders.reset_attention_mask:
        document_ids = follows.cumsum(1)
    if borders.reset_position_ids:
        positions = positions - (positions * follows).cummax(1).values
    if borders.eod_mask_loss:
        labels = labels.masked_fill(ends, IGNORE)
    return Batch(tokens, labels, positions, batch.sample_ids, document_ids)
