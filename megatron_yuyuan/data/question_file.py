"""A JSONL file of questions and answers, read as a shard of them is."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from megatron_yuyuan.data.medquad import drop_repeats, read_qa_jsonl
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import Tokenizer

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
"""How the name of a file of questions ends; a shard's prefix has no ending."""


class QuestionFile:
    """The pairs of a file in its order, no exact repeats, encoded when it is opened and held in memory.

    For thousands of pairs; tools/preprocess_data.py makes shards of more, and divides them into
    parts that share no question. Raises DataError as `read_qa_jsonl`.
    """

    def __init__(self, path: str | Path, tokenizer: Tokenizer):
        self.prefix, self.meta = str(path), {"template": TEMPLATE.to_dict(), "append_eod": True}
        pairs = list(drop_repeats(read_qa_jsonl(path), Counter()))
        self.fingerprint = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        prompts = tokenizer.encode_batch([TEMPLATE.prompt_text(pair.question) for pair in pairs])
        answers = tokenizer.encode_batch([TEMPLATE.answer_text(pair.answer) for pair in pairs])
        self._pairs = [
            [np.array(prompt), np.array([*answer, tokenizer.eod])]
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        lengths = [len(sequence) for pair in self._pairs for sequence in pair]
        self.sequence_lengths = np.array(lengths, dtype=np.int32)
        self.document_indices = 2 * np.arange(len(pairs) + 1)

    @property
    def num_documents(self) -> int:
        return len(self._pairs)

    def document(self, number: int) -> list[np.ndarray]:
        """Ids of a prompt and of its answer, which ends with the end of text."""
        return self._pairs[number]
