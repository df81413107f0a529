"""Finetuning samples: one question and its answer, padded to T; only the answer is learned."""

import numpy as np

from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.permutation import epoch_key, permuted
from megatron_yuyuan.data.template import TEMPLATE, QuestionTemplate
from megatron_yuyuan.errors import DataError


class QADataset:
    """Sample i is a document of two sequences, prompt and answer (with end of text), in a keyed
    order.

    A pair longer than seq_length + 1 tokens loses the end of its answer. Without a seed the
    pairs come in their own order. Raises DataError at opening: not a shard of
    pairs, another template, nothing in it that could be learned.
    """

    def __init__(self, shard: IndexedDataset, seq_length: int, eod: int, seed: int | None):
        pairs = shard.num_documents
        if not np.array_equal(shard.document_indices, 2 * np.arange(pairs + 1)):
            raise DataError(
                f"{shard.prefix} is not a question answering shard",
                "its documents are not two sequences each, prompt and answer",
                "tools/preprocess_data.py --input-format medquad-xml",
            )
        template = QuestionTemplate.from_dict(shard.meta.get("template", TEMPLATE.to_dict()))
        if template != TEMPLATE:
            raise DataError(
                f"{shard.prefix} was made with the template {template}",
                f"training, evaluation and generation use {TEMPLATE}",
                "preprocess the questions again",
            )
        if not pairs:
            raise DataError(
                f"{shard.prefix} holds 0 pairs",
                "there is nothing to learn from",
                "a part with questions in it, or tools/preprocess_data.py with another --split",
            )
        shortest = int(shard.sequence_lengths[0::2].min())  # of the prompts
        if shortest > seq_length:
            raise DataError(
                f"{shard.prefix}: none of its {pairs} pairs leaves room for a token of its answer",
                f"the shortest prompt has {shortest} tokens, a sample seq_length + 1 = {seq_length + 1}",
                f"a longer --seq-length: {shortest} or more",
            )
        self.shard, self.seq_length, self.eod, self.seed = shard, seq_length, eod, seed

    def __len__(self) -> int:
        return self.shard.num_documents

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens, labels (seq_length,) int64; labels are IGNORE on the prompt and the padding."""
        epoch, pair = divmod(number, len(self))
        if self.seed is not None:
            pair = permuted(pair, len(self), epoch_key(self.seed, epoch))
        prompt, answer = self.shard.document(pair)
        text = np.concatenate([prompt, answer])[: self.seq_length + 1].astype(np.int64)
        tokens = np.full(self.seq_length, self.eod, dtype=np.int64)
        labels = np.full(self.seq_length, IGNORE, dtype=np.int64)
        tokens[: len(text) - 1] = text[:-1]
        labels[len(prompt) - 1 : len(text) - 1] = text[len(prompt) :]
        return tokens, labels
