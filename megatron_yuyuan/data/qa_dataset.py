"""Finetuning samples: a question and its answer, padded to T; only the answer is learned, unless the
question is to be learned too."""

from itertools import groupby, pairwise
from typing import Protocol

import numpy as np

from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.data.permutation import epoch_key, permuted
from megatron_yuyuan.data.template import TEMPLATE, QuestionTemplate
from megatron_yuyuan.data.tokenizer import Tokenizer
from megatron_yuyuan.errors import DataError

SHOWN = 300
"""Characters of a prompt or an answer that `show_sample` shows."""


class Pairs(Protocol):
    """Encoded questions with their answers: a shard, or a JSONL file of them."""

    prefix: str
    meta: dict
    document_indices: np.ndarray
    """(pairs + 1,): the first sequence of each pair, then their number."""
    sequence_lengths: np.ndarray
    """(2 pairs,): tokens of a prompt, of its answer with end of text, of the next prompt, ..."""

    @property
    def fingerprint(self) -> str:
        """That another content changes."""
        ...

    @property
    def num_documents(self) -> int: ...

    def document(self, number: int) -> list[np.ndarray]:
        """Ids of a prompt and of its answer."""
        ...


class QADataset:
    """Sample i is a document of two sequences, prompt and answer (with end of text), in a keyed
    order.

    A pair longer than seq_length + 1 tokens loses the end of its answer. Without a seed the
    pairs come in their own order. Raises DataError at opening: not a shard of
    pairs, another template, nothing in it that could be learned.
    """

    def __init__(
        self,
        shard: Pairs,
        seq_length: int,
        eod: int,
        seed: int | None,
        loss_on_prompt: bool = False,
    ):
        _require_pairs(shard, seq_length)
        self.shard, self.seq_length, self.eod, self.seed = shard, seq_length, eod, seed
        self.loss_on_prompt = loss_on_prompt
        whole = np.add(shard.sequence_lengths[0::2], shard.sequence_lengths[1::2], dtype=np.int64)
        self.truncated = int((whole > seq_length + 1).sum())
        """Pairs that lose the end of their answer."""
        self.unanswered = int((shard.sequence_lengths[0::2] > seq_length).sum())
        """Pairs of these that lose all of it."""
        self.lengths = np.minimum(whole, seq_length + 1)
        """(pairs,) int64: tokens of each that are read."""

    def __len__(self) -> int:
        return self.shard.num_documents

    def pairs(self, number: int) -> list[int]:
        """The pairs of sample `number`, counted from the beginning of the run."""
        epoch, pair = divmod(number, len(self))
        if self.seed is not None:
            pair = permuted(pair, len(self), epoch_key(self.seed, epoch))
        return [pair]

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens, labels (seq_length,) int64; labels are IGNORE on the prompt and the padding.

        The first token of a pair is never learned: nothing of the pair stands before it.
        """
        text = np.full(self.seq_length + 1, self.eod, dtype=np.int64)
        learned = np.zeros(self.seq_length + 1, dtype=bool)
        start = 0
        for pair in self.pairs(number):
            prompt, answer = self.shard.document(pair)
            stop = start + self.lengths[pair]
            text[start:stop] = np.concatenate([prompt, answer])[: stop - start]
            given = 1 if self.loss_on_prompt else max(1, len(prompt))
            learned[start + given : stop] = True
            start = stop
        return text[:-1], np.where(learned[1:], text[1:], IGNORE)

    def describe(self) -> str:
        """`12,345 pairs; 321 lose the end of their answer at 1024 tokens, 2 of them all of it`."""
        line = f"{self.shard.num_documents:,} pairs"
        if self.truncated:
            line += f"; {self.truncated:,} lose the end of their answer at {self.seq_length} tokens"
        if self.unanswered:
            line += f", {self.unanswered:,} of them all of it"
        return line


def _require_pairs(shard: Pairs, seq_length: int) -> None:
    """Raises DataError where these are no pairs that could teach something."""
    pairs = shard.num_documents
    if not np.array_equal(shard.document_indices, 2 * np.arange(pairs + 1)):
        raise DataError(
            f"{shard.prefix} is not a question answering shard",
            "its documents are not two sequences each, prompt and answer",
            "a shard that tools/preprocess_data.py made of MedQuAD or of JSONL with question and answer",
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


def show_sample(tokens: np.ndarray, labels: np.ndarray, tokenizer: Tokenizer) -> str:
    """The first pair of a sample as text, what is not learned in [[ ]], and what follows it.

    tokens, labels (T,) as `QADataset` gives them.
    """
    learned = [False, *(labels != IGNORE)]
    last = labels[-1] if learned[-1] else tokenizer.eod
    text = [*tokens, last]
    ends = [0]
    for _, stretch in groupby(learned):
        ends.append(ends[-1] + sum(1 for _ in stretch))
    stretches = [(learned[start], text[start:stop]) for start, stop in pairwise(ends)]
    first = "".join(
        shorten(tokenizer.decode(ids)) if is_learned else f"[[{shorten(tokenizer.decode(ids))}]]"
        for is_learned, ids in stretches[:2]
    )
    others = sum(is_learned for is_learned, _ in stretches[2:])
    kept = f"; {others} more pairs" if others else ""
    return f"{first}{kept}"


def shorten(text: str) -> str:
    """A text without its middle, if it is long, on one line."""
    text = " ".join(text.splitlines())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 60]} ... {text[-55:]}"
