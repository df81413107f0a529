"""Pretraining samples: windows of T tokens of a shard's token stream, in a keyed order."""

import itertools
import math

import numpy as np

from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.permutation import epoch_key, mix, permuted
from megatron_yuyuan.errors import ConfigError, DataError


class GPTDataset:
    """Sample i is a window of seq_length + 1 tokens, found in O(1); no index files, no state.

    The documents [first, last) of the shard are one stream of tokens, cut into windows. Epoch e
    shifts the cuts by a phase and visits the windows in the order that (seed, e) names; up to T - 1
    tokens at the end are in no window. Without a seed, as for validation, the windows come in their
    own order.
    """

    def __init__(
        self,
        shard: IndexedDataset,
        seq_length: int,
        seed: int | None,
        documents: range | None = None,
    ):
        documents = documents if documents is not None else range(shard.num_documents)
        self.shard, self.seq_length, self.seed = shard, seq_length, seed
        self.start = shard.document_start(documents.start)
        tokens = shard.document_start(documents.stop) - self.start
        if tokens < seq_length + 1:
            raise DataError(
                f"{shard.prefix} has {tokens} tokens in documents {documents.start} to {documents.stop}",
                f"one sample needs seq_length + 1 = {seq_length + 1}",
                "more documents, another --split, or a shorter --seq-length",
            )
        self.windows = (
            max(1, (tokens - seq_length) // seq_length)
            if seed is not None
            else (tokens - 1) // seq_length
        )
        self.phases = min(seq_length, tokens - self.windows * seq_length)

    def __len__(self) -> int:
        return self.windows

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens, labels (seq_length,) int64 of sample `number`, counted from the beginning of the
        run."""
        epoch, window = divmod(number, self.windows)
        phase = 0
        if self.seed is not None:
            key = epoch_key(self.seed, epoch)
            window, phase = permuted(window, self.windows, key), mix(key) % self.phases
        first = self.start + phase + window * self.seq_length
        tokens = self.shard.tokens(first, first + self.seq_length + 1).astype(np.int64)
        return tokens[:-1], tokens[1:]


def split_documents(documents: int, split: str) -> tuple[range, range, range]:
    """Training, validation and test documents by shares such as 949,50,1: consecutive, and all of
    them.

    The bounds are rounded, not the parts, so each part is within one document of its share. Raises
    ConfigError.
    """
    try:
        shares = [float(part) for part in split.split(",")]
    except ValueError:
        shares = []
    if not 1 <= len(shares) <= 3 or min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise ConfigError(
            f"split={split!r}",
            "it is up to three shares of the documents, none negative",
            "--split 949,50,1",
        )
    ends = list(itertools.accumulate(shares + [0.0] * (3 - len(shares))))
    bounds = [0, *(round(end / ends[-1] * documents) for end in ends[:-1]), documents]
    train, valid, test = (range(first, last) for first, last in itertools.pairwise(bounds))
    return train, valid, test
