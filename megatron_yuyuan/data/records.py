"""What the first pass leaves about every document, in records of fixed size, sorted on disk.

Of unit 7 of the work there are, in PREFIX.partial/KEY/:

    000007.tokens     ids of the wanted documents, one after another
    000007.documents  (n,) DOCUMENT, every document in the order of the input, wanted or not
    000007.identity   (n,) RUN, those with a PMID or a PMC number, in sorted blocks
    000007.text       (n,) RUN, the digests of the wanted texts
    000007.bands      (n,) RUN, their MinHash bands
    000007.json       what was read, and the lengths of the blocks; it appears last
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.data.pubmed import REASONS as CITATION_REASONS

DELETION_NOTICE, OLDER = "a notice of deletion", "an older version"
REPEATED, NEAR_REPEATED = "a repeated text", "nearly a repeated text"
IN_EVALUATION, NO_TOKEN = "in an evaluation file", "no text"
IN_BAD_FILE = "in a bad file"
REASONS = (
    *("", DELETION_NOTICE, *CITATION_REASONS, OLDER, REPEATED, NEAR_REPEATED),
    *(IN_EVALUATION, NO_TOKEN, IN_BAD_FILE),
)
"""Why a document is dropped, by code; 0 is kept. The last one is not a document's own."""
CODES = {reason: code for code, reason in enumerate(REASONS)}

DOCUMENT = np.dtype([("tokens", "<u4"), ("reason", "u1")])
"""Ids in .tokens (0 unless wanted), code of the reason."""
RUN = np.dtype([("key", "<u8"), ("check", "<u8"), ("place", "<u4"), ("value", "<u4")])
"""Two records are alike if key and check are; `key` is spread evenly over 64 bits. `place` is the number
of the document in its unit; `value`, of an identity, 2 * version, and 1 more for a notice of deletion."""
KINDS = ("identity", "text", "bands")
BLOCK = 1 << 20
"""Records that are sorted in memory at a time."""


class RunWriter:
    """Writes RUN records of one kind in sorted blocks, in constant memory; without any, no file."""

    def __init__(self, stream: Callable[[], BinaryIO]):
        self._stream, self._count = stream, 0
        self._waiting: list[np.ndarray] = []
        self.blocks: list[int] = []
        """Records of each block."""

    def add(
        self, key: np.ndarray, check: np.ndarray, place: np.ndarray, value: np.ndarray | int = 0
    ) -> None:
        """Append records; all (n,), unsigned."""
        records = np.empty(len(key), RUN)
        records["key"], records["check"], records["place"], records["value"] = (
            key,
            check,
            place,
            value,
        )
        self._waiting.append(records)
        self._count += len(records)
        if self._count >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Sort what waits and write it as a block."""
        if self._count:
            block = np.concatenate(self._waiting)
            self._stream().write(block[np.argsort(block["key"], kind="stable")].tobytes())
            self.blocks.append(len(block))
        self._waiting, self._count = [], 0


class UnitFiles:
    """The files of one unit, and what its .json says once it is done."""

    def __init__(self, folder: Path, number: int):
        self.folder, self.number = folder, number

    def path(self, kind: str) -> Path:
        """Of the file that ends in `kind`."""
        return self.folder / f"{self.number:06d}.{kind}"

    def done(self, fingerprint: str) -> dict | None:
        """What the .json says if the unit is done, whole, and was made as `fingerprint` says."""
        try:
            done = json.loads(self.path("json").read_bytes())
            if done["fingerprint"] != fingerprint:
                return None
            whole = all(
                self.path(kind).stat().st_size == size for kind, size in done["bytes"].items()
            )
        except (OSError, ValueError, KeyError):
            return None
        return done if whole else None


class UnitWriter:
    """Writes the files of one unit."""

    def __init__(self, unit: UnitFiles, files: AtomicFiles):
        self._unit, self._files = unit, files
        self._streams = {kind: files.open(unit.path(kind)) for kind in ("tokens", "documents")}
        self.runs = {kind: RunWriter(partial(self._stream, kind)) for kind in KINDS}
        self.documents = 0

    def add(self, ids: np.ndarray, tokens: np.ndarray, reasons: np.ndarray) -> None:
        """Append documents: their ids, joined, and of each (n,) its number of ids and its reason."""
        records = np.empty(len(tokens), DOCUMENT)
        records["tokens"], records["reason"] = tokens, reasons
        self._stream("tokens").write(ids.tobytes())
        self._stream("documents").write(records.tobytes())
        self.documents += len(records)

    def _stream(self, kind: str) -> BinaryIO:
        if kind not in self._streams:
            self._streams[kind] = self._files.open(self._unit.path(kind))
        return self._streams[kind]

    def finish(self, description: dict) -> None:
        """Write the rest and, last, the .json with `description`."""
        for run in self.runs.values():
            run.flush()
        sizes = {kind: stream.tell() for kind, stream in self._streams.items()}
        blocks = {kind: run.blocks for kind, run in self.runs.items()}
        done = description | {"documents": self.documents, "bytes": sizes, "blocks": blocks}
        self._files.open(self._unit.path("json")).write(json.dumps(done).encode())
