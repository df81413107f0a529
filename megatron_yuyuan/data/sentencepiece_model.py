"""SentencePiece: models read and learned, as one more kind of tokenizer."""

import hashlib
import io
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import sentencepiece

from megatron_yuyuan.data.files import cannot_read
from megatron_yuyuan.data.sentencepiece_json import tokenizer_json
from megatron_yuyuan.data.tokenizer_base import (
    END_OF_TEXT,
    PART_OF_TOKENIZER,
    Tokenizer,
    refuse_surrogates,
)
from megatron_yuyuan.errors import ConfigError, DataError

MODEL_FILE = "tokenizer.model"
END_OF_TEXT_PIECES = (END_OF_TEXT, "<eod>")
"""Pieces that are taken for the end of text, before the model's own end of sentence."""
LEARNERS = ("unigram", "bpe")
MOST_PIECES = 1_000_000
"""SentencePiece itself sets no bound, and does not return from sizes near that of its integers."""
SAMPLE = 200_000
"""Stretches of text that are learned from: all of them, or so many chosen by chance."""
STRETCH = re.compile(r"[^\n]{1,1000}(?!\S)|[^\n]{1,1000}")
"""At most 1,000 characters of one line, whole words where there is white space: with SAMPLE, what
bounds the memory. A line break is always its byte, part of no longer piece."""
THREADS = 16
"""Part of the result: the sums of learning are divided by it, whatever the machine has."""
NEEDED_PIECES = re.compile(r"Vocabulary size is smaller than required_chars\. -?\d+ vs (\d+)")
"""How SentencePiece says that so many pieces are the least."""
QUIET = 2
"""SentencePiece's level of messages: errors only."""

sentencepiece.set_min_log_level(QUIET)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, unigram or BPE. Source: Kudo and Richardson 2018, arXiv:1808.06226.

    The end of text is the control symbol `<|endoftext|>` or `<eod>`, or else the model's end of
    sentence. A model that `train_sentencepiece` made loses nothing: decode(encode(text)) is the
    text, except that U+2581, which SentencePiece writes for a space, comes back as one. What
    another model keeps of a text is that model's own affair.
    """

    huggingface_class = "PreTrainedTokenizerFast"

    def __init__(self, model: bytes, source: str):
        """Open the content of a .model file that came from `source`.

        Raises DataError: damaged, no end of text, or one that a text can yield.
        """
        self._model, self._processor = model, sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            ids = range(self._processor.get_piece_size())
            self._pieces = [self._processor.id_to_piece(i) for i in ids]
        except (RuntimeError, ValueError):  # ValueError: a piece that is not UTF-8
            self._pieces = []
        if not self._pieces:
            raise DataError(
                f"{source} is damaged, or no SentencePiece model",
                "it was named as the tokenizer",
                "the .model file as SentencePiece wrote it",
            )
        self.eod = self._find_end_of_text(source)
        self.end_of_text = self._pieces[self.eod]

    @classmethod
    def from_file(cls, path: str | Path) -> "SentencePieceTokenizer":
        """Read a .model file. Raises DataError: not readable, and see the constructor."""
        try:
            return cls(Path(path).read_bytes(), str(path))
        except OSError as error:
            raise cannot_read(path, error, PART_OF_TOKENIZER) from None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, on the calling thread. Raises DataError: half of a surrogate pair."""
        try:
            return self._processor.encode(text)
        except Exception:  # of a kind that depends on the library's version
            refuse_surrogates(text)
            raise

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, on the calling thread: more make it no faster. Raises DataError."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. The end of text shows as its name, an id that is no token not at all."""
        runs: list[list[int]] = [[]]
        for index in map(int, ids):
            if index == self.eod:
                runs.append([])
            elif index < self.vocab_size:
                runs[-1].append(index)
        return self.end_of_text.join(self._processor.decode(run) for run in runs)

    @cached_property
    def vocab_size(self) -> int:
        """Ids lie in [0, vocab_size)."""
        return len(self._pieces)

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the .model file."""
        return hashlib.sha256(self._model).hexdigest()

    def files(self) -> dict[str, bytes]:
        """tokenizer.model."""
        return {MODEL_FILE: self._model}

    def huggingface_files(self) -> dict[str, bytes]:
        """tokenizer.model, and a tokenizer.json with the same ids. Raises ConfigError: there is
        none."""
        return self.files() | {"tokenizer.json": tokenizer_json(self._model)}

    def _find_end_of_text(self, source: str) -> int:
        own = self._processor.eos_id()
        names = [*END_OF_TEXT_PIECES, *([self._pieces[own]] if own >= 0 else [])]
        name = next((name for name in names if name in self._pieces), None)
        if name is None:
            raise DataError(
                f"{source} has no end of text",
                f"documents are separated by {' or '.join(END_OF_TEXT_PIECES)} or the end of "
                "sentence",
                "a model that tools/train_tokenizer.py made, or one learned with an eos_id",
            )
        index = self._pieces.index(name)
        if not self._processor.is_control(index):
            raise DataError(
                f"{source}: the text {name} would become the token",
                "a text could end its document",
                "a model that declares it as a control symbol",
            )
        return index


def train_sentencepiece(
    texts: Iterator[str], vocab_size: int, learner: str = "unigram"
) -> SentencePieceTokenizer:
    """Learn a model of at most `vocab_size` pieces by `learner`, one of LEARNERS: the unknown, the
    end of text, 256 bytes, and pieces of text.

    Texts are taken as they are: no normalisation, no space put before or taken away. The same texts
    in the same order give the same model. Raises ConfigError: too few pieces; DataError: no text.
    """
    if not 2 <= vocab_size <= MOST_PIECES:
        raise ConfigError(
            f"vocab_size={vocab_size} is out of range",
            f"SentencePiece learns 2 to {MOST_PIECES} pieces here",
            "--vocab-size 32000",
        )
    stretches, written = _sample(texts), io.BytesIO()
    if not stretches:
        raise DataError(
            "no text to learn from", "pieces are learned from words", "an input with text in it"
        )
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(stretches),
            model_writer=written,
            model_type=learner,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            eos_piece=END_OF_TEXT,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            byte_fallback=True,
            character_coverage=0.9999,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 20,
            num_threads=THREADS,
            minloglevel=QUIET,
        )
    except RuntimeError as error:
        needed = NEEDED_PIECES.search(str(error))
        if needed is None:
            raise
        raise ConfigError(
            f"vocab_size={vocab_size} is too small",
            "256 bytes, the end of text and the characters of the texts come first",
            f"--vocab-size {needed[1]} or more",
        ) from None
    return SentencePieceTokenizer(written.getvalue(), "training")


def _sample(texts: Iterator[str]) -> list[str]:
    """The stretches of the texts, at most SAMPLE, each as likely to be among them as any other; for
    the same texts the same, which SentencePiece's own choice is not. Source: Vitter 1985,
    algorithm R."""
    chance, kept, seen = random.Random(0), [], 0
    for text in texts:
        refuse_surrogates(text)
        for stretch in STRETCH.findall(text):
            seen += 1
            if seen <= SAMPLE:
                kept.append(stretch)
            elif (place := chance.randrange(seen)) < SAMPLE:
                kept[place] = stretch
    return kept
