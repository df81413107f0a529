"""From texts to arrays of token ids, for the shard writer: the tokenizer itself, or gigatoken.

gigatoken is fifty times as fast and has the same rules, but is another program. So a text that
holds a character above U+FFFF, where the two know different versions of Unicode, goes to the
tokenizer, and a sample goes to both: a difference ends the run.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from megatron_yuyuan.data.byte_level_bpe import ByteLevelBPE
from megatron_yuyuan.data.tokenizer_base import Tokenizer
from megatron_yuyuan.errors import ConfigError, DataError

Ids = list[int] | np.ndarray
CHOICES = ("auto", "reference", "fast")
AUDIT_INTERVAL = 500
"""Texts 0, 500, 1000, ... of every process are encoded a second time, by the tokenizer: a tenth of the
time."""


class Encoder(Protocol):
    """Encodes batches of texts. Opening one starts no thread, so it may be inherited by a fork."""

    name: str
    """What encodes, for the record: `reference` or `gigatoken 0.10.0`."""

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts, one text after another (sum of lengths,), and each one's number of
        ids (len(texts),) int64. Raises DataError."""


class ReferenceEncoder:
    """The tokenizer's own ids, which define what is right."""

    name = "reference"

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype):
        self._tokenizer, self._dtype = tokenizer, dtype

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See Encoder. On as many threads as the tokenizer's library was given."""
        return _join(self._tokenizer.encode_batch(texts), self._dtype)


class FastEncoder:
    """The ids that `encode_text` gives, compared with the tokenizer's on a sample."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        encode_text: Callable[[str], np.ndarray],
        dtype: np.dtype,
        name: str,
    ):
        self._tokenizer, self._encode_text, self._dtype = tokenizer, encode_text, dtype
        self.name, self._seen = name, 0

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See Encoder. On the calling thread. Raises DataError also where the two differ."""
        fast, reference = self._encode_text, self._tokenizer.encode
        rows: list[Ids] = [
            fast(text) if _is_in_plane_0(text) else reference(text) for text in texts
        ]
        for place in range(-self._seen % AUDIT_INTERVAL, len(texts), AUDIT_INTERVAL):
            self._audit(texts[place], rows[place])
        self._seen += len(texts)
        return _join(rows, self._dtype)

    def _audit(self, text: str, row: Ids) -> None:
        actual, expected = list(map(int, row)), self._tokenizer.encode(text)
        if actual == expected:
            return
        pairs = enumerate(zip(actual, expected, strict=False))
        shorter = min(len(actual), len(expected))
        first = next((position for position, (a, b) in pairs if a != b), shorter)
        raise DataError(
            f"{self.name} gives {actual[first : first + 5]} where the tokenizer gives "
            f"{expected[first : first + 5]}, from token {first} of the text {text[:60]!r}",
            "ids that are not the tokenizer's would make a wrong shard",
            "--encoder reference",
        )


def open_encoder(tokenizer: Tokenizer, choice: str, dtype: np.dtype) -> Encoder:
    """The encoder that was chosen, whose ids are of `dtype` (`dtype_for(tokenizer.vocab_size)`).

    `auto` is gigatoken where it is installed and knows this kind of tokenizer, else the reference.
    Raises ConfigError: `fast`, and it is not to be had.
    """
    if choice != "reference":
        try:
            return _open_gigatoken(tokenizer, dtype)
        except ConfigError:
            if choice == "fast":
                raise
    return ReferenceEncoder(tokenizer, dtype)


def _open_gigatoken(tokenizer: Tokenizer, dtype: np.dtype) -> FastEncoder:
    """Raises ConfigError: not installed, or the tokenizer is not of a kind it is known to match."""
    if importlib.util.find_spec("gigatoken") is None:
        raise ConfigError(
            "the fast encoder is not installed",
            "--encoder fast needs the package gigatoken",
            "pip install 'megatron_yuyuan[fast]', or --encoder reference",
        )
    rules = tokenizer.gpt2_json() if isinstance(tokenizer, ByteLevelBPE) else None
    if rules is None:
        raise _not_for_this("it is not GPT-2's byte-level BPE")
    import gigatoken

    name = f"gigatoken {importlib.metadata.version('gigatoken')}"
    try:
        backend = gigatoken.Tokenizer.from_json(rules).backend
    except RuntimeError as error:
        raise _not_for_this(str(error).splitlines()[0]) from None
    return FastEncoder(tokenizer, backend.encode, dtype, name)


def _not_for_this(cause: str) -> ConfigError:
    return ConfigError(
        f"the fast encoder cannot take this tokenizer: {cause}",
        "its ids could be others",
        "--encoder auto or --encoder reference",
    )


def _is_in_plane_0(text: str) -> bool:
    """True where every character is at most U+FFFF: one unit of UTF-16 each.

    False also for half of a surrogate pair, which the tokenizer then refuses.
    """
    if text.isascii():
        return True
    try:
        return len(text.encode("utf-16-le")) == 2 * len(text)
    except UnicodeEncodeError:
        return False


def _join(rows: Sequence[Ids], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids, one after another, and their lengths. No row at all gives two empty arrays."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    empty = np.empty(0, dtype)
    return np.concatenate([empty, *rows], dtype=dtype, casting="unsafe"), lengths
