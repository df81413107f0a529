"""Which training documents repeat an evaluation file: those that share a long run of words with it.

After GPT-3's filter (Brown et al. 2020, arXiv:2005.14165, appendix C): 13 words in a row, letter
case and punctuation aside. A string of 8 to 12 words, as many a question is, counts as a whole.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from megatron_yuyuan.data.files import open_input
from megatron_yuyuan.data.jsonl import JSON_DEPTH
from megatron_yuyuan.errors import DataError

NGRAM = 13
"""Words in a row that count as copied."""
SHORTEST = 8
"""Words of the shortest string that is looked for. GPT-3's lower bound; shorter ones (`Three-year
randomized field trial.`) occur in texts that copied nothing."""
FOREIGN_MARK = re.compile(r"[^\w\x00-\x7f]")
ASCII_WORDS = bytes(byte if byte > 127 or chr(byte).isalnum() else 32 for byte in range(256))
"""Blanks for the ASCII characters that are neither letter nor digit; the rest of UTF-8 as it is."""
JSON_SPACE = re.compile(r"\s*")
BLOCK = 1 << 12
"""Words of a long text that are looked at in one go."""
BASE = 0x9E3779B97F4A7C15
"""Of the polynomial hash: an odd number of 64 bits without pattern, here 2**64 / golden ratio."""
EMPTY_BITS = 4
"""The first look-up table has 2**4 to 2**5 places for each run, so that most of it is empty."""


class Decontaminator:
    """Finds the runs of words that a text shares with evaluation files.

    `files` are JSON or JSONL (every string, however deep, keys aside) or plain text (every line),
    gzip or not. Of a string of n words, each run of NGRAM is looked for; with SHORTEST <= n < NGRAM
    the whole string; with less, nothing. Raises DataError: unreadable (see `open_input`),
    not UTF-8, broken JSON, XML, a file in which nothing is long enough.

    A run is kept as a hash of 64 bits, so two different ones look alike by a chance of 2**-64. All
    in all 34 to 50 bytes a run. The same in every process, and pickles.
    """

    def __init__(self, files: Sequence[Path]):
        self.names = [Path(file).name for file in files]
        found = [_runs_of_file(Path(file)) for file in files]
        self.lengths = sorted({length for _, _, lengths in found for length in lengths})
        runs = np.concatenate([hashes for hashes, _, _ in found])
        owners = np.repeat(np.arange(len(found)), [len(hashes) for hashes, _, _ in found])
        self._runs, first = np.unique(runs, return_index=True)
        self._owners = owners[first].astype(np.uint16)
        self._heads = np.unique(np.concatenate([heads for _, heads, _ in found]))
        bits = len(self._heads).bit_length() + EMPTY_BITS
        self._shift = np.uint64(64 - bits)
        self._may_begin = np.zeros(1 << bits, dtype=bool)  # by the first bits of a head
        self._may_begin[self._heads >> self._shift] = True

    @property
    def fingerprint(self) -> str:
        """sha256 of what is looked for: the same where every text is judged the same."""
        lengths = np.array(self.lengths, dtype="<u8")
        return hashlib.sha256(lengths.tobytes() + self._runs.astype("<u8").tobytes()).hexdigest()

    def overlap(self, text: str) -> str:
        """The name of an evaluation file with which `text` shares a run of words, or ""."""
        return next((name for name, _ in self.matches(text)), "")

    def matches(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield (name of the evaluation file, the words shared) for every shared run of `text`.

        The first SHORTEST words, its head, decide for nearly every place of a text that no run
        begins there.
        """
        for block in _blocks(words_of(text)):
            hashes = RunHashes(block)
            heads = hashes.of_all(SHORTEST)[:BLOCK]
            places = np.flatnonzero(self._may_begin[(heads >> self._shift).view(np.int64)])
            places = places[_find(self._heads, heads[places]) >= 0]
            for length in self.lengths if places.size else ():
                runs = hashes.of_all(length)
                places = places[places < len(runs)]  # of rising lengths
                indices = _find(self._runs, runs[places])
                for place, index in zip(places, indices, strict=True):
                    if index >= 0:
                        shared = b" ".join(block[place : place + length]).decode()
                        yield self.names[self._owners[index]], shared


class RunHashes:
    """64-bit hashes of the runs in a list of W words.

    The bytes b of a run have the hash sum_i b_i BASE^i mod 2^64: a difference of running sums over
    the whole text, divided by the power at which the run begins.
    """

    def __init__(self, words: list[bytes]):
        text = np.frombuffer(b" ".join([b"", *words, b""]), dtype=np.uint8)
        self._borders = np.flatnonzero(text == ord(" "))  # (W + 1,)
        powers, self._inverses = _powers(len(text).bit_length())
        self._sums = np.cumsum(text * powers[: len(text)])

    def of_all(self, length: int) -> np.ndarray:
        """(W - length + 1,) uint64: the hash of each run of `length` words, its last blank too."""
        begin, end = self._borders[:-length], self._borders[length:]
        return (self._sums[end] - self._sums[begin]) * self._inverses[begin]


@cache
def _powers(bits: int) -> tuple[np.ndarray, ...]:
    """Powers of BASE and of its inverse mod 2^64, for 2**bits consecutive exponents."""
    bases = BASE, pow(BASE, -1, 1 << 64)
    return tuple(np.cumprod(np.full(1 << bits, base, dtype=np.uint64)) for base in bases)


def _find(sorted_hashes: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Where each of `hashes` stands in `sorted_hashes`, or -1."""
    index = np.minimum(np.searchsorted(sorted_hashes, hashes), len(sorted_hashes) - 1)
    return np.where(sorted_hashes[index] == hashes, index, -1)


def words_of(text: str) -> list[bytes]:
    """The runs of letters and digits in a text, casefolded, in UTF-8."""
    text = text.casefold()
    if not text.isascii():
        text = FOREIGN_MARK.sub(" ", unicodedata.normalize("NFC", text))
    return text.encode().translate(ASCII_WORDS).split()


def _blocks(words: list[bytes]) -> Iterator[list[bytes]]:
    """The words in pieces, each with the words that complete the runs which begin in it."""
    for start in range(0, len(words) - SHORTEST + 1, BLOCK):
        yield words[start : start + BLOCK + NGRAM - 1]


def _runs_of_file(path: Path) -> tuple[np.ndarray, np.ndarray, set[int]]:
    """(hashes of the runs to look for, of their heads, their lengths). Raises DataError: none."""
    runs, heads, lengths = [], [], set()
    for words in map(words_of, _strings(path)):
        if len(words) >= SHORTEST:
            length = min(len(words), NGRAM)
            lengths.add(length)
            for hashes in map(RunHashes, _blocks(words)):
                runs.append(hashes.of_all(length))
                heads.append(hashes.of_all(SHORTEST)[: len(runs[-1])])
    if not runs:
        raise DataError(
            f"{path}: no string of {SHORTEST} words or more",
            "shorter ones are not looked for in the training texts, so nothing would be",
            "the file with the questions or texts of the evaluation",
        )
    return np.unique(np.concatenate(runs)), np.unique(np.concatenate(heads)), lengths


def _strings(path: Path) -> Iterator[str]:
    """Every string of a JSON or JSONL file, or every line of a plain one. Raises DataError."""
    with open_input(path) as stream:
        content = stream.read()
    try:
        text = content.decode("utf-8-sig").strip()
        if text.startswith(("{", "[")):
            yield from _strings_of_json(text)
            return
    except RecursionError:
        raise _unreadable(path, JSON_DEPTH) from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise _unreadable(path, str(error)) from None
    if text.startswith("<"):
        raise _unreadable(path, "it begins with <, as XML does")
    yield from text.splitlines()


def _strings_of_json(text: str) -> Iterator[str]:
    """The strings in one JSON value, or in several one after another, as the lines of JSONL are."""
    decoder, position = json.JSONDecoder(), 0
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        space = JSON_SPACE.match(text, position)
        position = space.end() if space else position
        pending = [value]
        while pending:
            value = pending.pop()
            if isinstance(value, str):
                yield value
            elif isinstance(value, (dict, list)):
                pending += value.values() if isinstance(value, dict) else value


def _unreadable(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} cannot be read as an evaluation file: {what}",
        "what is not read is not kept out of the training texts",
        "JSON, JSONL or plain text in UTF-8, such as medquad_test.jsonl",
    )
