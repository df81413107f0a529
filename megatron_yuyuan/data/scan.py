"""The first pass of preprocessing: a unit of work is read, filtered, encoded and recorded.

A unit is a run of small files, one file, or a range of bytes of a large JSONL file. It is read once: its
ids wait on disk until it is known, from the records of all units, which documents are kept.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
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
from megatron_yuyuan.data.tokenizer_base import Tokenizer
from megatron_yuyuan.errors import DataError, UnsafeError
from megatron_yuyuan.faults import fault_point

VERSION = 2
"""Of what is kept and how it is recorded. Another one makes every unit again."""
UNIT_BYTES = 16 << 20
"""Of input in a unit, about; a compressed file counts four times its size."""
BATCH, BATCH_LETTERS = 1000, 8 << 20
"""Documents, and characters about, that are encoded at a time."""
MOST_OVERLAPS = 1000
"""Documents found in evaluation files that are named; the others are only counted."""


@dataclass(frozen=True)
class Recipe:
    """What is kept of the documents, and how it is encoded."""

    key: str = "text"
    """Of a JSONL line, that holds the text."""
    append_eod: bool = False
    wanted: CitationFilter = field(default_factory=CitationFilter)
    keep_duplicates: bool = False
    """Keep exact duplicates of earlier documents."""
    near_duplicates: bool = False
    """Drop near duplicates of earlier documents too."""
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
    tokenizer: Tokenizer
    folder: Path
    skip_bad_files: bool

    def __call__(self, unit: Unit, tell: Callable[[int], None]) -> None:
        """Write the files of a unit; `tell` hears how many documents are read. Raises DataError."""
        fault_point("scan.unit_begun")
        with AtomicFiles() as atomic:
            writer = UnitWriter(UnitFiles(self.folder, unit.number), atomic)
            parts = _UnitScan(self, unit, writer).run(tell)
            writer.finish({"fingerprint": unit.fingerprint, "parts": parts})


class _UnitScan:
    """The scan of one unit as it goes on."""

    def __init__(self, scanner: Scanner, unit: Unit, writer: UnitWriter):
        self.scanner, self.recipe, self.writer = scanner, scanner.recipe, writer
        self.unit = unit
        self.parts: list[dict] = [{"documents": 0, "notes": {}, "overlaps": []} for _ in unit.parts]
        """Of each part what was read of it, what there is to note, and its error if the file is bad."""

    def run(self, tell: Callable[[int], None]) -> list[dict]:
        """Read, encode and record all documents; batches go on from one file to the next."""
        documents = (pair for number in range(len(self.parts)) for pair in self._read(number))
        for batch in _batches(documents):
            self._add(batch)
            fault_point("scan.batch_recorded")
            tell(len(batch))
        return self.parts

    def _read(self, number: int) -> Iterator[tuple[int, Document]]:
        """(number, document) of one part; a bad file ends it early."""
        part, done = self.unit.parts[number], self.parts[number]
        source = self.scanner.sources[part.source]
        note = partial(self._note, number)
        try:
            if part.span is None or part.span[0] == 0:
                done["described"] = describe_source(source.path)
            for document in source.documents(self.recipe.key, self.recipe.wanted, part.span, note):
                done["documents"] += 1
                yield number, document
        except (DataError, UnsafeError) as error:
            if not self.scanner.skip_bad_files:
                remedy = f"{error.remedy}; --skip-bad-files goes on without this file"
                raise type(error)(error.what, error.why, remedy) from None
            done["error"] = error.what

    def _note(self, number: int, what: str, position: int) -> None:
        """Count a text, and keep the place of the first."""
        source = self.scanner.sources[self.unit.parts[number].source]
        first = {"texts": 0, "first": f"{source.path.name}, byte {position}"}
        self.parts[number]["notes"].setdefault(what, first)["texts"] += 1

    def _add(self, batch: list[tuple[int, Document]]) -> None:
        """Encode and record a batch of documents."""
        first, documents = self.writer.documents, [document for _, document in batch]
        reasons = np.array([CODES[document.reason] for document in documents], np.uint8)
        self._record_identities(documents, first)
        self._look_at_texts(batch, reasons)
        chosen = np.flatnonzero(reasons == 0)
        texts = [documents[index].text for index in chosen]
        ids, lengths = self.scanner.encoder.encode(texts)
        has_tokens = lengths > 0
        reasons[chosen[~has_tokens]] = CODES[NO_TOKEN]
        if self.recipe.append_eod:
            ids = np.insert(ids, np.cumsum(lengths)[has_tokens], self.scanner.tokenizer.eod)
            lengths = lengths + has_tokens
        tokens = np.zeros(len(batch), np.int64)
        tokens[chosen] = lengths
        texts = [text for text, has in zip(texts, has_tokens, strict=True) if has]
        self._record_texts(texts, first + chosen[has_tokens])
        self.writer.add(ids, tokens, reasons)

    def _record_identities(self, documents: list[Document], first: int) -> None:
        known = [
            (
                mix(d.identity),
                d.identity,
                first + place,
                2 * d.version + (d.reason == DELETION_NOTICE),
            )
            for place, d in enumerate(documents)
            if d.identity
        ]
        if known:
            self.writer.runs["identity"].add(*np.array(known, np.uint64).T)

    def _record_texts(self, texts: list[str], places: np.ndarray) -> None:
        if texts and not self.recipe.keep_duplicates:
            digests = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
            keys = np.frombuffer(digests, "<u8").reshape(-1, 4)  # 16 bytes of each are enough
            self.writer.runs["text"].add(keys[:, 0], keys[:, 1], places)
        if texts and self.recipe.near_duplicates:
            bands = minhash_bands(texts)
            number = np.broadcast_to(np.arange(bands.shape[1]), bands.shape)
            place = np.broadcast_to(places[:, None], bands.shape)
            self.writer.runs["bands"].add(bands.ravel(), number.ravel(), place.ravel())

    def _look_at_texts(self, batch: list[tuple[int, Document]], reasons: np.ndarray) -> None:
        """Drop what stands in an evaluation file; count what looks like the end of a text."""
        against, end_of_text = self.recipe.decontaminator, self.scanner.tokenizer.end_of_text
        for place in np.flatnonzero(reasons == 0):
            number, document = batch[place]
            part = self.parts[number]
            if end_of_text in document.text:
                what = f"{end_of_text} encoded as ordinary characters"
                first = {"texts": 0, "first": self._name(number, document)}
                part["notes"].setdefault(what, first)["texts"] += 1
            if against and (found := against.overlap(document.text)):
                reasons[place] = CODES[IN_EVALUATION]
                if len(part["overlaps"]) < MOST_OVERLAPS:
                    overlap = {"document": self._name(number, document), "in": found}
                    part["overlaps"].append(overlap)

    def _name(self, number: int, document: Document) -> str:
        """What a person finds a document by: its file, and its number or how it begins."""
        source = self.scanner.sources[self.unit.parts[number].source]
        return f"{source.path.name}, {document.name or repr(document.text[:60])}"


def _batches(documents: Iterator[tuple[int, Document]]) -> Iterator[list[tuple[int, Document]]]:
    """The documents, at most BATCH and about BATCH_LETTERS characters at a time."""
    batch, letters = [], 0
    for pair in documents:
        batch.append(pair)
        letters += len(pair[1].text)
        if len(batch) == BATCH or letters > BATCH_LETTERS:
            yield batch
            batch, letters = [], 0
    if batch:
        yield batch
