"""Token shards in Megatron's MMIDIDX format: PREFIX.bin, PREFIX.idx and, beside them,
PREFIX.meta.json.

    .bin  every token id, one sequence after another, little endian
    .idx  where sequences and documents begin: see data/shard_index.py

The same bytes as `IndexedDatasetBuilder` of megatron-core 0.16.1 writes. PREFIX.meta.json is ours:
what made the shard (tokenizer, sources, template) and checksums; a shard of Megatron's has none and
is read all the same.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.data.shard_index import (
    BLOCK,
    DTYPES,
    HEADER,
    IndexHeader,
    IndexWriter,
    check_entries,
    expect,
    read_header,
)
from megatron_yuyuan.errors import DataError

FORMAT = "megatron_yuyuan shard 1"


def dtype_for(vocab_size: int) -> np.dtype:
    """Megatron's rule: uint16 below 65500 tokens, else int32."""
    return DTYPES[8] if vocab_size < 65500 else DTYPES[4]


class IndexedDatasetWriter:
    """Writes one shard, which appears whole at `finish()` or not at all.

        with IndexedDatasetWriter("pubmed_text_document", dtype_for(tokenizer.vocab_size)) as shard:
            shard.add_document([ids])
            shard.finish({"tokenizer_fingerprint": tokenizer.fingerprint})

    With `files`, several shards and other files appear together when the owner's `with` block ends.
    Memory does not grow with the shard: lengths and document indices wait for `finish()` in unnamed
    temporary files beside the .bin, 12 bytes a document.
    """

    def __init__(
        self, prefix: str | Path, dtype: np.dtype | type, files: AtomicFiles | None = None
    ):
        self.prefix, self.dtype = str(prefix), np.dtype(dtype)
        self._files = files or AtomicFiles()
        self._owned = self._files if files is None else None
        self._bin = self._files.open(f"{self.prefix}.bin")
        self._digest = hashlib.sha256()
        self._index = IndexWriter(Path(prefix).parent, self.dtype)
        self.num_tokens, self._largest = 0, -1

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return self._index.documents

    def add_document(self, sequences: Iterable[Sequence[int] | np.ndarray]) -> None:
        """Append a document of 1-D sequences. Raises DataError: an id the dtype cannot hold."""
        arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
        ids = np.concatenate([np.zeros(0, dtype=np.int64), *arrays])
        lengths = np.array([len(array) for array in arrays], dtype=np.int64)
        self._append(ids, lengths)
        self._index.add_document(lengths)

    def add_documents(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Append len(lengths) documents of one sequence each.

        ids      (sum of lengths,) integers, one document after another; in the shard's dtype they
                 are not copied
        lengths  (n,) integers

        Raises DataError: an id the dtype cannot hold, lengths that do not divide these ids.
        """
        self._append(ids, lengths)
        self._index.add_documents(lengths)

    def finish(self, description: dict | None = None) -> None:
        """Write .meta.json (counts, checksums, `description`) and .idx; all three get their names.

        Raises DataError where the disk refuses.
        """
        described = self._files.open(f"{self.prefix}.meta.json")  # before the .idx gets its name
        index = self._index.write(self._files.open(f"{self.prefix}.idx"))
        meta = (description or {}) | {
            "format": FORMAT,
            "dtype": self.dtype.name,
            "documents": self.num_documents,
            "sequences": self._index.sequences,
            "sequences_per_document": self._index.sequences_per_document,
            "tokens": self.num_tokens,
            "largest_token_id": self._largest,
            "bin": {"bytes": self._bin.tell(), "sha256": self._digest.hexdigest()},
            "idx": index,
        }
        meta["checksum"] = _checksum(meta)
        described.write((json.dumps(meta, indent=2) + "\n").encode())
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

    def _append(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Sequences of `lengths` tokens, their ids one after another."""
        if lengths.sum() != len(ids) or any(not 0 <= n < 2**31 for n in _extremes(lengths)):
            raise DataError(
                f"{self.prefix}: {len(lengths)} lengths with the sum {lengths.sum()} for {len(ids)} ids",
                "the .idx would not say where each sequence begins",
                "lengths of 0 to 2,147,483,647 tokens that add up to the ids",
            )
        for extreme in _extremes(ids):
            if not 0 <= extreme <= np.iinfo(self.dtype).max:
                raise DataError(
                    f"{self.prefix}: id {extreme} does not fit {self.dtype.name}",
                    "it would be stored as another token",
                    "the dtype that dtype_for(vocab_size) names",
                )
            self._largest = max(self._largest, extreme)
        content = np.ascontiguousarray(ids, dtype=self.dtype)
        self._bin.write(content.data)
        self._digest.update(content.data)
        self.num_tokens += len(ids)


def _extremes(values: np.ndarray) -> tuple[int, ...]:
    """The smallest and the largest value; () of nothing."""
    return (int(values.min()), int(values.max())) if len(values) else ()


def prefix_of(word: str) -> str:
    """PREFIX of PREFIX, PREFIX.bin and PREFIX.idx: people name a file."""
    return word.removesuffix(".bin").removesuffix(".idx")


class IndexedDataset:
    """Reads one shard through memory maps, after checking everything that its .idx claims.

    Works for any number of tokens; an open shard costs no memory but the pages that are read.
    Raises DataError at opening: a file missing or of another size than the index says, another
    magic, version or dtype, lengths below zero, pointers that are not the running sum of the
    lengths, documents that do not ascend from 0 to the number of sequences, and, where there is a
    .meta.json, an index that is not the one described there. Not at opening, but by
    tools/check_data.py: the ids, and the sha256 of both files.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = prefix_of(str(prefix))
        self.meta = _read_meta(self.prefix)
        """What PREFIX.meta.json says; empty without one."""
        try:
            with open(f"{self.prefix}.idx", "rb") as stream:
                header = read_header(self.prefix, stream)
                per_document = self.meta.get("sequences_per_document")
                check_entries(self.prefix, stream, header, per_document)
            self._map(header)
        except OSError as error:
            raise DataError(
                f"cannot read {error.filename or self.prefix}: {error.strerror}",
                "a shard is its .bin and its .idx",
                "the PREFIX of PREFIX.bin and PREFIX.idx, as tools/preprocess_data.py printed it",
            ) from None
        if self.meta:
            self._expect_described()

    def _map(self, header: IndexHeader) -> None:
        """Map both files. Raises OSError, and DataError where the .bin has another size than its
        sequences."""
        index = np.memmap(f"{self.prefix}.idx", np.uint8, "r").view(np.ndarray)
        self._index = index
        self.dtype = header.dtype
        self.sequence_lengths = index[HEADER.size : header.pointers_at].view("<i4")
        self._pointers = index[header.pointers_at : header.documents_at].view("<i8")
        self.document_indices = index[header.documents_at :].view("<i8")
        last = slice(max(0, header.sequences - 1), None)
        ends = self._pointers[last] + self.sequence_lengths[last] * np.int64(self.dtype.itemsize)
        size = Path(f"{self.prefix}.bin").stat().st_size
        expect(self.prefix, "bytes of the .bin", int(ends.sum()), size)
        tokens = (
            np.memmap(f"{self.prefix}.bin", self.dtype, "r") if size else np.zeros(0, self.dtype)
        )
        self._tokens = tokens.view(np.ndarray)

    def _expect_described(self) -> None:
        """Compare both files with the .meta.json. Raises DataError.

        Where all documents have as many sequences, `check_entries` found each in its place. Other
        shards, and those made before that number was noted, are compared by checksum.
        """
        described, size = self.meta, self._tokens.nbytes
        for name, found in (("sequences", self.num_sequences), ("documents", self.num_documents)):
            expect(self.prefix, f"{name}, by the .meta.json", described[name], found)
        expect(self.prefix, "bytes of the .bin, by the .meta.json", described["bin"]["bytes"], size)
        if described.get("sequences_per_document") is None:
            digest = hashlib.sha256(self._index.data).hexdigest()
            expect(self.prefix, "sha256 of the .idx", described["idx"]["sha256"], digest)
        digest = _checksum(described)
        expect(self.prefix, "checksum of the .meta.json", described.get("checksum", digest), digest)

    @property
    def fingerprint(self) -> str:
        """sha256 that another content, or another order of it, changes: of what the .meta.json says of both
        files; of a shard without one, of the .idx."""
        if not self.meta:
            return hashlib.sha256(self._index.data).hexdigest()
        digests = (self.meta[file]["sha256"] for file in ("bin", "idx"))
        return hashlib.sha256("".join(digests).encode()).hexdigest()

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

    def document_start(self, index: int) -> int:
        """The token at which document `index` begins; for num_documents, num_tokens."""
        return int(self.document_starts(np.array([index]))[0])

    def document_starts(self, indices: np.ndarray) -> np.ndarray:
        """(n,) int64: `document_start` of each of `indices` (n,)."""
        sequences = self.document_indices[indices]
        starts, inside = np.full(len(indices), self.num_tokens), sequences < self.num_sequences
        starts[inside] = self._pointers[sequences[inside]] // self.dtype.itemsize
        return starts

    def documents_at(self, tokens: np.ndarray) -> np.ndarray:
        """(n,) int64: the document in which each of `tokens` (n,) lies."""
        places = np.asarray(tokens) * self.dtype.itemsize
        sequences = np.searchsorted(self._pointers, places, side="right") - 1
        return np.searchsorted(self.document_indices, sequences, side="right") - 1

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

    def check_vocabulary(
        self, tokenizer_fingerprint: str, vocab_size: int, rank: int = 0, ranks: int = 1
    ) -> None:
        """Refuse a shard that another tokenizer made. Raises DataError.

        Without a .meta.json to say which one did, the ids are read and compared with `vocab_size`:
        each of `ranks` ranks reads its share of them.
        """
        made_by = self.meta.get("tokenizer_fingerprint", tokenizer_fingerprint)
        if made_by != tokenizer_fingerprint:
            raise DataError(
                f"{self.prefix} was made with another tokenizer, of {self.meta.get('vocab_size')} tokens ({made_by}); "
                f"the one given has {vocab_size} ({tokenizer_fingerprint})",
                "its ids mean other texts",
                "the tokenizer the shard was made with, or preprocess again",
            )
        if self.meta:
            found = {0, self.meta["largest_token_id"]} if self.num_tokens else set()
        else:
            cuts = (self.num_tokens * part // ranks for part in (rank, rank + 1))
            found = self._extreme_ids(*cuts)
        for token in found:
            if not 0 <= token < vocab_size:
                raise DataError(
                    f"{self.prefix}: token id {token}; valid ids are 0 to {vocab_size - 1}",
                    "the embedding has no row for it",
                    "the tokenizer the shard was made with, or preprocess again",
                )

    def __reduce__(self):
        return IndexedDataset, (self.prefix,)  # a copy in another process maps the files again

    def _extreme_ids(self, first: int, stop: int) -> set[int]:
        """The smallest and the largest of the tokens [first, stop); of none, nothing."""
        blocks = (self._tokens[at : min(at + BLOCK, stop)] for at in range(first, stop, BLOCK))
        found = {extreme for block in blocks for extreme in _extremes(block)}
        return {min(found), max(found)} if found else set()


def _checksum(meta: dict) -> str:
    """sha256 of a .meta.json less its own checksum, as JSON of sorted names."""
    content = {name: value for name, value in meta.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_meta(prefix: str) -> dict:
    """PREFIX.meta.json, or {} where there is none. Raises DataError where it is not one of ours."""
    path = Path(f"{prefix}.meta.json")
    if not path.exists():
        return {}
    try:
        meta = json.loads(path.read_bytes())
        made_as, counts = meta["format"], [meta[name] for name in ("sequences", "documents")]
        counts += [meta["tokens"], meta["largest_token_id"], meta["bin"]["bytes"]]
        counts.append(meta.get("sequences_per_document") or 0)
        hexadecimal = meta["bin"]["sha256"] + meta["idx"]["sha256"]
        if not (all(type(count) is int for count in counts) and len(hexadecimal) == 128):
            raise ValueError("a count that is none")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read: {error!r}",
            "it describes the shard beside it",
            "preprocess again; without it the shard is read unverified",
        ) from None
    expect(prefix, "format of the .meta.json", FORMAT, made_as)
    return meta
