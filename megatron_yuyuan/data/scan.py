"""The first pass of preprocessing: a unit of work is read, filtered, encoded and recorded.

A unit is a run of small files, one file, or a range of bytes of a large JSONL file. It is read once: its
ids wait on disk until it is known, from the records of all units, which documents are kept.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from megatron_yuyuan.data.decontamination import Decontaminator
from megatron_yuyuan.data.encoder import Encoder
from megatron_yuyuan.data.files import AtomicFiles, cannot_read, describe_source, is_compressed
from megatron_yuyuan.data.minhash import minhash_bands
from megatron_yuyuan.data.permutation import mix
from megatron_yuyuan.data.pubmed import CitationFilter
from megatron_yuyuan.data.records import (
    CODES,
    DELETION_NOTICE,
    IN_EVALUATION,
    NO_TOKEN,
    UnitFiles,
    UnitWriter,
)
from megatron_yuyuan.data.sources import Document, Source
from megatron_yuyuan.errors import DataError, UnsafeError

VERSION = 1
"""Of what is kept and how it is recorded. Another one makes every unit again."""
UNIT_BYTES = 16 << 20
"""Of input in a unit, about; a compressed file counts four times its size."""
BATCH = 1000
"""Documents encoded at a time."""
MOST_OVERLAPS = 1000
"""Documents found in evaluation files that a unit names; the others are only counted."""


@dataclass(frozen=True)
class Recipe:
    """What is kept of the documents, and how it is encoded."""

    key: str = "text"
    """Of a JSONL line, that holds the text."""
    append_eod: bool = False
    wanted: CitationFilter = field(default_factory=CitationFilter)
    keep_duplicates: bool = False
    """Keep texts that came before."""
    near_duplicates: bool = False
    """Drop texts that nearly came before."""
    decontaminator: Decontaminator | None = None

    def to_dict(self) -> dict:
        """Plain JSON values."""
        against = self.decontaminator
        return {
            "json_key": self.key,
            "append_eod": self.append_eod,
            **asdict(self.wanted),
            "keep_duplicates": self.keep_duplicates,
            "near_duplicates": self.near_duplicates,
            "decontaminate": against and {"files": against.names, "sha256": against.fingerprint},
        }


@dataclass(frozen=True)
class Part:
    """A source, or the lines of it that begin in a range of its bytes."""

    source: int
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Unit:
    """Work for one process."""

    number: int
    parts: tuple[Part, ...]
    weight: int
    """Bytes of input, about."""
    fingerprint: str
    """Of all that decides about what is written."""
    label: str
    """What a person calls it: its first file, and how many more."""

    def __str__(self) -> str:
        return self.label


def plan_units(sources: Sequence[Source], recipe: Recipe, tokenizer_fingerprint: str) -> list[Unit]:
    """Divide the sources, in their order, into units of about UNIT_BYTES. Raises DataError.

    A compressed file is never divided, nor is XML. The result of preprocessing does not depend on it.
    """
    groups: list[list[Part]] = []
    weights: list[int] = []
    states = [_state(source) for source in sources]
    for number, (source, (_, size, _)) in enumerate(zip(sources, states, strict=True)):
        pieces = _divide(source, size)
        weight = size * (4 if is_compressed(source.path) else 1) // len(pieces)
        for span in pieces:
            if not weights or weights[-1] + weight > UNIT_BYTES:
                groups.append([])
                weights.append(0)
            groups[-1].append(Part(number, span))
            weights[-1] += weight
    made_by = [VERSION, recipe.to_dict(), tokenizer_fingerprint]
    return [
        Unit(
            number,
            tuple(parts),
            weight,
            _fingerprint(made_by, parts, states),
            _label(parts, sources),
        )
        for number, (parts, weight) in enumerate(zip(groups, weights, strict=True))
    ]


def _state(source: Source) -> tuple[str, int, int]:
    """What tells that a file is the one that was read."""
    try:
        state = source.path.stat()
    except OSError as error:
        raise cannot_read(source.path, error) from None
    return f"{source.format} {source.path.absolute()}", state.st_size, state.st_mtime_ns


def _divide(source: Source, size: int) -> list[tuple[int, int] | None]:
    """Ranges of bytes of a large plain JSONL file; else the whole."""
    if source.format != "jsonl" or size <= UNIT_BYTES or is_compressed(source.path):
        return [None]
    pieces = -(-size // UNIT_BYTES)
    ends = [size * piece // pieces for piece in range(pieces + 1)]
    return list(pairwise(ends))


def _fingerprint(made_by: list, parts: Sequence[Part], states: Sequence[tuple]) -> str:
    read = [[*states[part.source], part.span] for part in parts]
    return hashlib.sha256(json.dumps([made_by, read]).encode()).hexdigest()


def _label(parts: Sequence[Part], sources: Sequence[Source]) -> str:
    others = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
    return f"{sources[parts[0].source].path}{others}"


@dataclass(frozen=True)
class Scanner:
    """Scans units; made before the processes are forked, so that each has it."""

    sources: Sequence[Source]
    recipe: Recipe
    encoder: Encoder
    eod: int
    folder: Path
    skip_bad_files: bool

    def __call__(self, unit: Unit, tell: Callable[[int], None]) -> None:
        """Write the files of a unit; `tell` hears how many documents are read. Raises DataError."""
        files = UnitFiles(self.folder, unit.number)
        files.clear()
        with AtomicFiles() as atomic:
            scan = _UnitScan(self, UnitWriter(files, atomic), tell)
            parts = [scan.part(part) for part in unit.parts]
            scan.writer.finish(
                {
                    "fingerprint": unit.fingerprint,
                    "parts": parts,
                    "repaired": scan.repaired,
                    "overlaps": scan.overlaps,
                }
            )


class _UnitScan:
    """The scan of one unit as it goes on."""

    def __init__(self, scanner: Scanner, writer: UnitWriter, tell: Callable[[int], None]):
        self.scanner, self.recipe, self.writer, self.tell = scanner, scanner.recipe, writer, tell
        self.repaired: dict[str, dict] = {}
        """What was repaired -> {"texts": count, "first": place}."""
        self.overlaps: list[dict] = []

    def part(self, part: Part) -> dict:
        """Read one part. Returns what was read, and the error of a file that is bad."""
        source, before = self.scanner.sources[part.source], self.writer.documents
        done = {"source": part.source}
        try:
            if part.span is None or part.span[0] == 0:
                done["described"] = describe_source(source.path)
            documents = source.documents(
                self.recipe.key, self.recipe.wanted, part.span, self._notice_of(source)
            )
            while batch := list(islice(documents, BATCH)):
                self._add(batch, source)
                self.tell(len(batch))
        except (DataError, UnsafeError) as error:
            if not self.scanner.skip_bad_files:
                raise
            done["error"] = error.what
        return done | {"documents": self.writer.documents - before}

    def _notice_of(self, source: Source) -> Callable[[str, int], None]:
        def notice(what: str, position: int) -> None:
            first = {"texts": 0, "first": f"{source.path.name}, byte {position}"}
            self.repaired.setdefault(what, first)["texts"] += 1

        return notice

    def _add(self, batch: list[Document], source: Source) -> None:
        """Encode and record a batch of documents."""
        first = self.writer.documents
        reasons = np.array([CODES[document.reason] for document in batch], np.uint8)
        self._record_identities(batch, first)
        if self.recipe.decontaminator:
            self._decontaminate(batch, reasons, source)
        chosen = np.flatnonzero(reasons == 0)
        texts = [batch[index].text for index in chosen]
        ids, lengths = self.scanner.encoder.encode(texts)
        empty = lengths == 0
        reasons[chosen[empty]] = CODES[NO_TOKEN]
        if self.recipe.append_eod:
            ids = np.insert(ids, np.cumsum(lengths)[~empty], self.scanner.eod)
            lengths = lengths + ~empty
        tokens = np.zeros(len(batch), np.int64)
        tokens[chosen] = lengths
        self._record_texts([text for text in texts if text], first + chosen[~empty])
        self.writer.add(ids, tokens, reasons)

    def _record_identities(self, batch: list[Document], first: int) -> None:
        known = [
            (
                mix(d.identity),
                d.identity,
                first + place,
                2 * d.version + (d.reason == DELETION_NOTICE),
            )
            for place, d in enumerate(batch)
            if d.identity
        ]
        if known:
            self.writer.runs["identity"].add(*np.array(known, np.uint64).T)

    def _record_texts(self, texts: list[str], places: np.ndarray) -> None:
        if not texts or self.recipe.keep_duplicates:
            return
        digests = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
        keys = np.frombuffer(digests, "<u8").reshape(-1, 4)  # the first 16 bytes of each are enough
        self.writer.runs["text"].add(keys[:, 0], keys[:, 1], places)
        if self.recipe.near_duplicates:
            bands = minhash_bands(texts)
            number = np.broadcast_to(np.arange(bands.shape[1]), bands.shape)
            place = np.broadcast_to(places[:, None], bands.shape)
            self.writer.runs["bands"].add(bands.ravel(), number.ravel(), place.ravel())

    def _decontaminate(self, batch: list[Document], reasons: np.ndarray, source: Source) -> None:
        for place in np.flatnonzero(reasons == 0):
            if found := self.recipe.decontaminator.overlap(batch[place].text):
                reasons[place] = CODES[IN_EVALUATION]
                if len(self.overlaps) < MOST_OVERLAPS:
                    name = batch[place].name or f"text {self.writer.documents + int(place)}"
                    self.overlaps.append({"document": f"{source.path.name}, {name}", "in": found})
