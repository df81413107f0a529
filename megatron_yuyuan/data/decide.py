"""Which documents are kept: decided once, over the records of all units, in bounded memory.

The records of a kind lie on disk in many sorted blocks. Ranges of keys are gathered from all blocks one
after another, so that records which are alike meet in memory: BLOCK of them at a time, and one byte for
every document in all.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_yuyuan.data.pubmed import DELETED
from megatron_yuyuan.data.records import (
    BLOCK,
    CODES,
    DOCUMENT,
    IN_BAD_FILE,
    NEAR_REPEATED,
    OLDER,
    REPEATED,
    RUN,
    UnitFiles,
)


@dataclass(frozen=True)
class ScannedUnit:
    """A unit that is done, and its place among all documents."""

    files: UnitFiles
    description: dict
    sources: Sequence[int]
    """Number of the source of each of its parts."""
    first: int
    """Number of its first document."""

    @property
    def parts(self) -> Iterator[tuple[int, dict]]:
        """(number of its source, what the scan says) of each part."""
        return zip(self.sources, self.description["parts"], strict=True)

    @property
    def documents(self) -> int:
        """Documents in it."""
        return self.description["documents"]

    def read_documents(self, start: int = 0, count: int = -1) -> np.ndarray:
        """(count,) DOCUMENT records from `start` on."""
        offset = start * DOCUMENT.itemsize
        return np.fromfile(self.files.path("documents"), DOCUMENT, count, offset=offset)


def decide(units: Sequence[ScannedUnit]) -> np.ndarray:
    """(documents,) uint8: the code of the reason for which each document of the units is dropped; 0 is
    kept.

    A file of which some part cannot be read gives nothing. Of the records of one PMID the newest version
    stays, of the same version the later one, unless a notice of deletion comes after it. Then, of
    repeated texts the first stays, and so of near ones. What one rule dropped has no say in the next.
    """
    reasons = np.concatenate([unit.read_documents()["reason"].copy() for unit in units])
    for span in _spans_of_bad_files(units):
        reasons[span] = CODES[IN_BAD_FILE]
    bad = reasons == CODES[IN_BAD_FILE]
    for slices in _gather(units, "identity", ~bad):
        _keep_the_newest(*_join(slices), reasons)
    for kind, reason in (("text", REPEATED), ("bands", NEAR_REPEATED)):
        for slices in _gather(units, kind, reasons == 0):
            # each slice first by itself: a text that is everywhere does not come together in memory
            firsts = [_keep_the_first(*one, reasons, CODES[reason]) for one in slices]
            _keep_the_first(*_join(firsts), reasons, CODES[reason])
    return reasons


Slice = tuple[np.ndarray, np.ndarray]
"""(n,) RUN records and the numbers of their documents (n,) int64."""


def _join(slices: Iterable[Slice]) -> Slice:
    records, documents = zip(*slices, strict=True)
    return np.concatenate(records), np.concatenate(documents)


def _spans_of_bad_files(units: Sequence[ScannedUnit]) -> Iterator[slice]:
    """The documents of files of which a part, maybe in another unit, could not be read."""
    bad = {source for unit in units for source, part in unit.parts if "error" in part}
    for unit in units:
        first = unit.first
        for source, part in unit.parts:
            if source in bad:
                yield slice(first, first + part["documents"])
            first += part["documents"]


def _gather(
    units: Sequence[ScannedUnit], kind: str, among: np.ndarray
) -> Iterator[Iterator[Slice]]:
    """The records of the documents that are `among` all, a range of keys at a time, and of each range a
    slice of every sorted block: all that are alike come together."""
    runs = [run for unit in units for run in _runs(unit, kind)]
    parts = -(-sum(count for _, _, count in runs) // BLOCK)
    for part in range(parts):
        begin, end = ((p << 64) // parts for p in (part, part + 1))
        yield (_slice(*run, kind, begin, end, among) for run in runs)


def _runs(unit: ScannedUnit, kind: str) -> Iterator[tuple[ScannedUnit, int, int]]:
    """(unit, first record, records) of each sorted block of a kind."""
    first = 0
    for count in unit.description["blocks"][kind]:
        yield unit, first, count
        first += count


def _slice(
    unit: ScannedUnit, first: int, count: int, kind: str, begin: int, end: int, among: np.ndarray
) -> Slice:
    """The records of a block with begin <= key < end, of documents that are `among` all."""
    offset = first * RUN.itemsize
    block = np.memmap(unit.files.path(kind), RUN, mode="r", offset=offset, shape=(count,))
    keys = block["key"]
    records = np.array(block[bisect_left(keys, begin) : bisect_left(keys, end)])
    documents = records["place"].astype(np.int64) + unit.first
    chosen = among[documents]
    return records[chosen], documents[chosen]


def _keep_the_newest(records: np.ndarray, documents: np.ndarray, reasons: np.ndarray) -> None:
    """Of each identity, drop what is deleted later, and all but the newest of the rest."""
    version, is_notice = records["value"] >> 1, (records["value"] & 1).astype(bool)
    order = np.lexsort((-documents, records["check"], records["key"]))  # the latest first
    group = _groups(records[order])
    # the highest version that a notice so far, later in the input, has deleted; groups do not mix
    stride = int(version.max(initial=0)) + 2
    noticed = np.where(is_notice[order], version[order].astype(np.int64) + 1, 0)
    deleted_up_to = np.maximum.accumulate(group * stride + noticed) - group * stride
    deleted = np.zeros(len(records), bool)
    deleted[order] = deleted_up_to > version[order]
    _drop(documents[deleted & ~is_notice], reasons, CODES[DELETED])
    alive = ~deleted & ~is_notice
    records, documents, version = records[alive], documents[alive], version[alive]
    order = np.lexsort((documents, version, records["check"], records["key"]))
    group = _groups(records[order])
    superseded = order[:-1][group[:-1] == group[1:]]
    _drop(documents[superseded], reasons, CODES[OLDER])


def _keep_the_first(
    records: np.ndarray, documents: np.ndarray, reasons: np.ndarray, code: int
) -> Slice:
    """Of documents that are alike, drop all but the first. Returns the first ones."""
    order = np.lexsort((documents, records["check"], records["key"]))
    group = _groups(records[order])
    is_first = np.diff(group, prepend=-1) > 0
    _drop(documents[order[~is_first]], reasons, code)
    return records[order[is_first]], documents[order[is_first]]


def _groups(records: np.ndarray) -> np.ndarray:
    """(n,) int64: the same number for neighbours that are alike."""
    new = (records["key"][1:] != records["key"][:-1]) | (
        records["check"][1:] != records["check"][:-1]
    )
    return np.cumsum(np.concatenate([np.zeros(min(1, len(records)), bool), new]))


def _drop(documents: np.ndarray, reasons: np.ndarray, code: int) -> None:
    """Drop documents; one that was not wanted anyway keeps its reason."""
    reasons[documents[reasons[documents] == 0]] = code
