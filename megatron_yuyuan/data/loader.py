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

    def sides(self) -> dict[str, Tensor]:
        """What every stage of the model needs beside its input."""
        return {"positions": self.positions, "sample_ids": self.sample_ids}

    def split(self, portions: int) -> list["Batch"]:
        """Equal micro batches, in order."""
        parts = [
            t.chunk(portions) for t in (self.tokens, self.labels, self.positions, self.sample_ids)
        ]
        return [Batch(*part) for part in zip(*parts, strict=True)]


def read_batch(
    dataset: Dataset,
    consumed: int,
    size: int,
    rank: int,
    ranks: int,
    device,
    limit: int | None = None,
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
    return Batch(
        *(t.to(device, non_blocking=True) for t in (tokens, labels, positions, sample_ids))
    )
