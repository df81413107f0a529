"""Token shards in Megatron's MMIDIDX format: PREFIX.bin, PREFIX.idx and, beside them,
PREFIX.meta.json.

    .bin  every token id, one sequence after another, little endian
    .idx  9s magic, u64 version, u8 dtype code, u64 sequences S, u64 documents + 1,
          int32 (S) tokens of each sequence, int64 (S) byte at which each begins in the .bin,
          int64 (documents + 1) first sequence of each document, and last S

The same bytes as `IndexedDatasetBuilder` of megatron-core 0.16.1 writes. PREFIX.meta.json is ours:
what made the shard (tokenizer, sources, template) and checksums; a shard of Megatron's has none and
is read all the same.
"""

import hashlib
import json
import struct
from array import array
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Self

import numpy as np

from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.errors import DataError

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {4: np.dtype("<i4"), 5: np.dtype("<i8"), 8: np.dtype("<u2")}
"""Codes of the .idx -> dtypes that can hold token ids."""
FORMAT = "megatron_yuyuan shard 1"
BLOCK = 1 << 20
"""Entries looked at in one go when a whole file is checked."""


def dtype_for(vocab_size: int) -> np.dtype:
    """Megatron's rule: uint16 below 65500 tokens, else int32."""
    return DTYPES[8] if vocab_size < 65500 else DTYPES[4]


class IndexedDatasetWriter:
    """Writes one shard, which appears whole at `finish()` or not at all.

        with IndexedDatasetWriter("pubmed_text_document", dtype_for(tokenizer.vocab_size)) as shard:
            shard.add_document([ids])
            shard.finish({"tokenizer_fingerprint": tokenizer.fingerprint})

    With `files`, several shards and other files appear together when the owner's `with` block ends.
    Memory: 4 bytes a sequence and 8 a document.
    """

    def __init__(
        self, prefix: str | Path, dtype: np.dtype | type, files: AtomicFiles | None = None
    ):
        self.prefix, self.dtype = str(prefix), np.dtype(dtype)
        self._code = next(code for code, known in DTYPES.items() if known == self.dtype)
        self._owned = AtomicFiles() if files is None else None
        self._files = files or self._owned
        self._bin = self._files.open(f"{self.prefix}.bin")
        self._digest = hashlib.sha256()
        self._lengths, self._documents = array("i"), array("q", [0])
        self.num_tokens, self._largest = 0, -1

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return len(self._documents) - 1

    def add_document(self, sequences: Iterable[Sequence[int] | np.ndarray]) -> None:
        """Append a document of 1-D sequences. Raises DataError: an id the dtype cannot hold."""
        for sequence in sequences:
            ids = np.asarray(sequence, dtype=np.int64)
            if ids.size:
                smallest, largest = int(ids.min()), int(ids.max())
                if smallest < 0 or largest > np.iinfo(self.dtype).max:
                    wrong = smallest if smallest < 0 else largest
                    raise DataError(
                        f"{self.prefix}: id {wrong} does not fit {self.dtype.name}",
                        "it would be stored as another token",
                        "the dtype that dtype_for(vocab_size) names",
                    )
                self._largest = max(self._largest, largest)
            content = ids.astype(self.dtype).tobytes()
            self._bin.write(content)
            self._digest.update(content)
            self._lengths.append(ids.size)
            self.num_tokens += ids.size
        self._documents.append(len(self._lengths))

    def finish(self, description: dict | None = None) -> None:
        """Write .meta.json (counts, checksums, `description`) and .idx; all three get their names.

        Raises DataError where the disk refuses.
        """
        lengths = np.array(self._lengths, dtype=np.int32)
        ends = np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
        pointers = np.concatenate([np.zeros(1, np.int64), ends])[: len(lengths)]
        index = b"".join(
            [
                HEADER.pack(MAGIC, VERSION, self._code, len(lengths), len(self._documents)),
                lengths.astype("<i4").tobytes(),
                pointers.astype("<i8").tobytes(),
                np.array(self._documents, dtype="<i8").tobytes(),
            ]
        )
        meta = (description or {}) | {
            "format": FORMAT,
            "dtype": self.dtype.name,
            "documents": self.num_documents,
            "sequences": len(lengths),
            "tokens": self.num_tokens,
            "largest_token_id": self._largest,
            "bin": {"bytes": self._bin.tell(), "sha256": self._digest.hexdigest()},
            "idx": {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
        }
        described = json.dumps(meta, indent=2) + "\n"
        self._files.open(f"{self.prefix}.meta.json").write(described.encode())
        self._files.open(f"{self.prefix}.idx").write(index)
        if self._owned is not None:
            owned, self._owned = self._owned, None
            owned.publish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._owned is not None and kind is not None:
            self._owned.__exit__(kind, error, trace)
        elif self._owned is not None:  # not finished: nothing may stay
            self._owned.discard()


class IndexedDataset:
    """Reads one shard through memory maps, after checking everything that its .idx claims.

    Works for any number of tokens; an open shard costs no memory but the pages that are read.
    Raises DataError at opening: a file missing or of another size than the index says, another
    magic, version or dtype, lengths below zero, pointers that are not the running sum of the
    lengths, documents that do not ascend from 0 to the number of sequences, and, where there is a
    .meta.json, an index that is not the one described there.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = str(prefix)
        self._index = _map(f"{self.prefix}.idx", np.dtype(np.uint8))
        if len(self._index) < HEADER.size:
            self._refuse("bytes of the .idx", f"{HEADER.size} or more", len(self._index))
        header = HEADER.unpack(self._index[: HEADER.size].tobytes())
        magic, version, code, sequences, documents = header
        self._expect("magic", MAGIC, magic)
        self._expect("version", VERSION, version)
        if code not in DTYPES:
            known = " or ".join(f"{known} ({dtype.name})" for known, dtype in DTYPES.items())
            self._refuse("dtype code", known, code)
        self.dtype = DTYPES[code]
        begin = list(accumulate((4 * sequences, 8 * sequences, 8 * documents), initial=HEADER.size))
        self._expect("bytes of the .idx", begin[3], len(self._index))
        self.sequence_lengths = self._index[begin[0] : begin[1]].view("<i4")
        self._pointers = self._index[begin[1] : begin[2]].view("<i8")
        self.document_indices = self._index[begin[2] : begin[3]].view("<i8")
        num_bytes = self._check_sequences()
        self._check_documents(sequences)
        self._tokens = _map(f"{self.prefix}.bin", self.dtype, self._expect, num_bytes)
        self.meta = self._read_meta()
        """What PREFIX.meta.json says; empty without one."""

    @property
    def num_documents(self) -> int:
        """Documents in the shard."""
        return len(self.document_indices) - 1

    @property
    def num_sequences(self) -> int:
        """Sequences in the shard: one a document for text, two (prompt, answer) for questions."""
        return len(self.sequence_lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens in the shard."""
        return len(self._tokens)

    @cached_property
    def document_offsets(self) -> np.ndarray:
        """(num_documents + 1,) int64: token at which each document begins, last num_tokens."""
        sequences = np.append(self._pointers // self.dtype.itemsize, self.num_tokens)
        return sequences[self.document_indices]

    def document(self, index: int) -> list[np.ndarray]:
        """The sequences of document `index`, each a (length,) view of the shard's dtype."""
        first, last = self.document_indices[range(self.num_documents)[index] :][:2]
        starts = self._pointers[first:last] // self.dtype.itemsize
        lengths = self.sequence_lengths[first:last]
        spans = zip(starts, lengths, strict=True)
        return [self._tokens[start : start + length] for start, length in spans]

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) ids of the shard as one stream, a view. Raises IndexError."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.num_tokens}")
        return self._tokens[start:stop]

    def check_vocabulary(self, tokenizer_fingerprint: str, vocab_size: int) -> None:
        """Refuse a shard that another tokenizer made. Raises DataError.

        Without a .meta.json to say which one did, every id is read and compared with `vocab_size`.
        """
        made_by = self.meta.get("tokenizer_fingerprint", tokenizer_fingerprint)
        if made_by != tokenizer_fingerprint:
            raise DataError(
                f"{self.prefix}: tokenizer {tokenizer_fingerprint}, made by {made_by}",
                "its ids mean other texts",
                "the tokenizer the shard was made with, or preprocess again",
            )
        for index in (0, self.meta["largest_token_id"]) if self.meta else self._extreme_ids():
            if self.num_tokens and not 0 <= index < vocab_size:
                raise DataError(
                    f"{self.prefix}: token id {index}, known are 0 to {vocab_size - 1}",
                    "the embedding has no row for it",
                    "the tokenizer the shard was made with, or preprocess again",
                )

    def __reduce__(self):
        return IndexedDataset, (self.prefix,)  # a copy in another process maps the files again

    def _extreme_ids(self) -> tuple[int, int]:
        """The smallest and the largest id in the .bin."""
        smallest = largest = 0
        for start in range(0, self.num_tokens, BLOCK):
            block = self._tokens[start : start + BLOCK]
            smallest, largest = min(smallest, int(block.min())), max(largest, int(block.max()))
        return smallest, largest

    def _check_sequences(self) -> int:
        """Lengths and pointers, block by block. Returns the bytes the .bin must have."""
        total = 0
        for start in range(0, self.num_sequences, BLOCK):
            lengths = self.sequence_lengths[start : start + BLOCK]
            pointers = self._pointers[start : start + BLOCK]
            if lengths.min() < 0:
                worst = int(lengths.argmin())
                self._refuse(f"length of sequence {start + worst}", "0 or more", lengths[worst])
            ends = total + np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
            expected = np.append(total, ends[:-1])
            if (wrong := np.flatnonzero(pointers != expected)).size:
                at = wrong[0]
                self._refuse(f"pointer of sequence {start + at}", expected[at], pointers[at])
            total = int(ends[-1])
        return total

    def _check_documents(self, sequences: int) -> None:
        """Document indices ascend from 0 to the number of sequences."""
        indices = self.document_indices
        if not len(indices):
            self._refuse("number of document indices", "1 or more", 0)
        self._expect("first document index", 0, int(indices[0]))
        self._expect("last document index", sequences, int(indices[-1]))
        if (wrong := np.flatnonzero(indices[1:] < indices[:-1])).size:
            before, after = indices[wrong[0] :][:2]
            self._refuse(f"document index {wrong[0] + 1}", f"{before} or more", after)

    def _read_meta(self) -> dict:
        path = Path(f"{self.prefix}.meta.json")
        if not path.exists():
            return {}
        try:
            meta = json.loads(path.read_bytes())
            described = meta["format"], meta["bin"]["bytes"], meta["idx"]["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} cannot be read: {error!r}",
                "it describes the shard beside it",
                "preprocess again; without it the shard is read unverified",
            ) from None
        self._expect("format of the .meta.json", FORMAT, described[0])
        self._expect("bytes of the .bin in the .meta.json", self._tokens.nbytes, described[1])
        self._expect("sha256 of the .idx", described[2], hashlib.sha256(self._index).hexdigest())
        return meta

    def _expect(self, name: str, expected, found) -> None:
        if found != expected:
            self._refuse(name, expected, found)

    def _refuse(self, name: str, expected, found) -> None:
        raise DataError(
            f"{self.prefix}: {name}: expected {expected}, found {found}",
            "the shard is damaged, or its files are not of one making",
            "copy .bin, .idx and .meta.json again, or preprocess again",
        )


def _map(path: str, dtype: np.dtype, expect=None, num_bytes: int = 0) -> np.ndarray:
    """A file as a read-only array. Raises DataError: missing, or not of `num_bytes`."""
    try:
        size = Path(path).stat().st_size
        if expect is not None:
            expect("bytes of the .bin", num_bytes, size)
        mapped = np.memmap(path, dtype=dtype, mode="r") if size else np.zeros(0, dtype)
        return mapped.view(np.ndarray)
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}",
            "a shard is its .bin and its .idx",
            "a prefix without suffix: --data-path data/pubmed_text_document",
        ) from None
