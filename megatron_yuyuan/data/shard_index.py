"""The .idx of a shard: where its parts lie, how it is written, and whether it agrees with itself.

header              9s magic, u64 version, u8 dtype code, u64 sequences S, u64 documents + 1
lengths    (S)      int32, tokens of each sequence
pointers   (S)      int64, byte at which each begins in the .bin
documents  (D + 1)  int64, first sequence of each document, and last S
"""

import hashlib
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from megatron_yuyuan.errors import DataError

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype] = {4: np.dtype("<i4"), 5: np.dtype("<i8"), 8: np.dtype("<u2")}
"""Codes of the .idx -> dtypes that can hold token ids."""
BLOCK = 1 << 16
"""Entries that are written or checked at a time: their buffers stay in a core's cache."""
THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class IndexHeader:
    """What the first bytes of an .idx say, and where the rest must lie."""

    dtype: np.dtype
    """Of the ids in the .bin."""
    sequences: int
    documents: int

    @property
    def pointers_at(self) -> int:
        """Byte at which the pointers begin; the lengths begin at HEADER.size."""
        return HEADER.size + 4 * self.sequences

    @property
    def documents_at(self) -> int:
        """Byte at which the document indices begin."""
        return self.pointers_at + 8 * self.sequences

    @property
    def num_bytes(self) -> int:
        """Size of the whole .idx."""
        return self.documents_at + 8 * (self.documents + 1)


class IndexWriter:
    """Collects the entries of an .idx, and writes it when their number is known.

    Until then they lie in unnamed temporary files in `folder`: memory does not grow with them.
    """

    def __init__(self, folder: Path, dtype: np.dtype):
        self._dtype = dtype
        self._lengths, self._ends = _Spool(folder, "<i4"), _Spool(folder, "<i8")
        self._step: int | None = None

    @property
    def sequences(self) -> int:
        """Sequences so far."""
        return len(self._lengths)

    @property
    def documents(self) -> int:
        """Documents so far."""
        return len(self._ends)

    @property
    def sequences_per_document(self) -> int | None:
        """The same for every document, or None."""
        return self._step

    def add_document(self, lengths: np.ndarray) -> None:
        """One document of sequences of `lengths` (n,) tokens."""
        self._add(lengths, np.array([self.sequences + len(lengths)]), len(lengths))

    def add_documents(self, lengths: np.ndarray) -> None:
        """Documents of one sequence each, of `lengths` (n,) tokens."""
        if len(lengths):
            self._add(lengths, np.arange(self.sequences, self.sequences + len(lengths)) + 1, 1)

    def _add(self, lengths: np.ndarray, ends: np.ndarray, step: int) -> None:
        self._step = step if step == self._step or not self.documents else None
        self._lengths.append(lengths)
        self._ends.append(ends)

    def write(self, stream: BinaryIO) -> dict:
        """Write the .idx, a block at a time. Returns {"bytes": its size, "sha256": hex}."""
        digest, end = hashlib.sha256(), 0

        def put(content) -> None:
            stream.write(content)
            digest.update(content)

        [code] = (code for code, known in DTYPES.items() if known == self._dtype)
        put(HEADER.pack(MAGIC, VERSION, code, self.sequences, self.documents + 1))
        for lengths in self._lengths.blocks():
            put(lengths)
        for lengths in self._lengths.blocks():
            sizes = lengths * np.int64(self._dtype.itemsize)
            ends = end + np.cumsum(sizes)
            put(ends - sizes)
            end = ends[-1]
        put(np.zeros(1, "<i8"))
        for ends in self._ends.blocks():
            put(ends)
        return {"bytes": stream.tell(), "sha256": digest.hexdigest()}


class _Spool:
    """A list of integers, the first of them in memory, a longer one in an unnamed file."""

    def __init__(self, folder: Path, dtype: str):
        self._dtype, self._length = np.dtype(dtype), 0
        self._file = tempfile.SpooledTemporaryFile(BLOCK, dir=str(folder))  # noqa: SIM115

    def __len__(self) -> int:
        return self._length

    def append(self, values: np.ndarray) -> None:
        self._file.write(values.astype(self._dtype).tobytes())
        self._length += len(values)

    def blocks(self) -> Iterator[np.ndarray]:
        """All values, at most BLOCK at a time."""
        self._file.seek(0)
        while block := self._file.read(BLOCK * self._dtype.itemsize):
            yield np.frombuffer(block, self._dtype)


def read_header(prefix: str, stream: BinaryIO) -> IndexHeader:
    """The header of an open .idx. Raises DataError: another magic, version or dtype, or a file of
    another size than it says."""
    size = os.fstat(stream.fileno()).st_size
    if size < HEADER.size:
        refuse(prefix, "bytes of the .idx", f"{HEADER.size} or more", size)
    magic, version, code, sequences, indices = HEADER.unpack(stream.read(HEADER.size))
    expect(prefix, "magic of the .idx", MAGIC, magic)
    expect(prefix, "version of the .idx", VERSION, version)
    if code not in DTYPES:
        refuse(prefix, "dtype code of the .idx", " or ".join(map(str, DTYPES)), code)
    if not indices:
        refuse(prefix, "number of document indices", "1 or more", 0)
    header = IndexHeader(DTYPES[code], sequences, indices - 1)
    expect(prefix, "bytes of the .idx", header.num_bytes, size)
    return header


def check_entries(
    prefix: str, stream: BinaryIO, header: IndexHeader, per_document: int | None
) -> None:
    """Look at every entry of an .idx once, over several threads.

    No length is below zero, each pointer is the one before it and the bytes of its sequence, and
    the documents begin at every `per_document`-th sequence or, where that is None, ascend. Raises
    DataError naming the first entry that is wrong.
    """

    def read(entries: np.ndarray, at: int) -> np.ndarray:
        os.preadv(stream.fileno(), [entries.data], at)
        return entries

    def check_part(part: int) -> None:
        cuts = [(count * part // THREADS, count * (part + 1) // THREADS) for count in counts]
        _check_sequences(prefix, read, header, *cuts[0])
        _check_documents(prefix, read, header, per_document, *cuts[1])

    counts = header.sequences, header.documents
    ends = (("first", header.documents_at, 0), ("last", header.num_bytes - 8, header.sequences))
    for name, at, expected in ends:
        expect(prefix, f"{name} document index", expected, int(read(np.empty(1, "<i8"), at)[0]))
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(check_part, range(THREADS)):
            pass  # an error of any thread is raised here


Read = Callable[[np.ndarray, int], np.ndarray]
"""Fill an array with the bytes of the .idx from a place on."""


def _check_sequences(prefix: str, read: Read, header: IndexHeader, first: int, stop: int) -> None:
    """Sequences [first, stop). The buffers are used again: fresh memory would cost more than the
    check itself."""
    lengths, pointers, ends = (
        np.empty(BLOCK, "<i4"),
        np.empty(BLOCK + 1, "<i8"),
        np.empty(BLOCK, "<i8"),
    )
    if first == 0 and stop:
        expect(prefix, "pointer of sequence 0", 0, int(read(pointers[:1], header.pointers_at)[0]))
    for at in range(first, stop, BLOCK):
        count = min(BLOCK, stop - at)
        followed = min(count, header.sequences - 1 - at)  # the last sequence has no next pointer
        n = read(lengths[:count], HEADER.size + 4 * at)
        p = read(pointers[: followed + 1], header.pointers_at + 8 * at)
        if (smallest := n.min()) < 0:
            refuse(prefix, f"length of sequence {at + n.argmin()}", "0 or more", smallest)
        end = np.multiply(n[:followed], header.dtype.itemsize, out=ends[:followed], dtype=np.int64)
        end += p[:followed]
        if (wrong := np.flatnonzero(end != p[1:])).size:
            k = wrong[0]
            refuse(prefix, f"pointer of sequence {at + k + 1}", end[k], p[k + 1])


def _check_documents(
    prefix: str, read: Read, header: IndexHeader, step: int | None, first: int, stop: int
) -> None:
    """Documents [first, stop), each with the beginning of the next."""
    indices, gaps = np.empty(BLOCK + 1, "<i8"), np.empty(BLOCK, "<i8")
    for at in range(first, stop, BLOCK):
        count = min(BLOCK, stop - at)
        i = read(indices[: count + 1], header.documents_at + 8 * at)
        gap = np.subtract(i[1:], i[:-1], out=gaps[:count])
        if (wrong := np.flatnonzero(gap < 0 if step is None else gap != step)).size:
            k = wrong[0]
            expected = f"{i[k]} or more" if step is None else i[k] + step
            refuse(prefix, f"document index {at + k + 1}", expected, i[k + 1])


def expect(prefix: str, name: str, expected, found) -> None:
    """Raises DataError where a shard has not what it must have."""
    if found != expected:
        refuse(prefix, name, expected, found)


def refuse(prefix: str, name: str, expected, found) -> NoReturn:
    """Raises DataError about one field of a shard."""
    raise DataError(
        f"{prefix}: {name}: expected {expected}, found {found}",
        "the shard is damaged, or its files are not of one making",
        "copy .bin, .idx and .meta.json again, or preprocess again",
    )
