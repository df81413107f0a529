"""From files of texts to a shard: scan the units of work, decide once what is kept, write it.

Everything waits in PREFIX.partial/ until the shard is whole. Killed and started again, what was scanned
is not scanned again. Several tasks, on one node or many, may scan their shares of the units; the process
that then finds all units done decides and writes. The shard is the same bytes in each case.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.filesize import decimal

from megatron_yuyuan import __version__
from megatron_yuyuan.data.decide import ScannedUnit, decide
from megatron_yuyuan.data.encoder import Encoder
from megatron_yuyuan.data.files import AtomicFiles, free_bytes, make_folder, remove_temporary
from megatron_yuyuan.data.indexed_dataset import IndexedDatasetWriter, dtype_for
from megatron_yuyuan.data.progress import Progress
from megatron_yuyuan.data.records import CODES, IN_BAD_FILE, REASONS, UnitFiles
from megatron_yuyuan.data.scan import MOST_OVERLAPS, Recipe, Scanner, Unit, plan_units
from megatron_yuyuan.data.sources import Source
from megatron_yuyuan.data.tokenizer import Tokenizer
from megatron_yuyuan.data.workers import run_in_processes
from megatron_yuyuan.errors import DataError, SpaceError
from megatron_yuyuan.faults import fault_point

DOCUMENTS = 4096
"""Copied at a time from a unit to the shard."""


@dataclass(frozen=True)
class Preparation:
    """The making of one shard."""

    sources: Sequence[Source]
    recipe: Recipe
    tokenizer: Tokenizer
    prefix: str
    """Of all outputs of the call."""
    skip_bad_files: bool = False

    @property
    def folder(self) -> Path:
        """Of what is done so far."""
        return Path(f"{self.prefix}.partial") / self.recipe.key

    @property
    def shard(self) -> str:
        """Prefix of the shard."""
        return f"{self.prefix}_{self.recipe.key}_document"

    def plan(self) -> list[Unit]:
        """All units. Raises DataError: an input that is not there."""
        return plan_units(self.sources, self.recipe, self.tokenizer.fingerprint)

    def done(self, unit: Unit) -> dict | None:
        """What the scan of a unit left, or None if it is (or with a bad file: must be) scanned yet."""
        found = UnitFiles(self.folder, unit.number).done(unit.fingerprint)
        return None if found and _is_bad(found) and not self.skip_bad_files else found

    def scan(
        self, units: Sequence[Unit], encoder: Encoder, processes: int, progress: Progress
    ) -> None:
        """Scan those of the units that are not done, or had a bad file, which may be mended. Raises
        DataError: a bad file; LostError."""
        make_folder(self.folder)
        files = {unit: UnitFiles(self.folder, unit.number) for unit in units}
        found = {unit: files[unit].done(unit.fingerprint) for unit in units}
        missing = [unit for unit, done in found.items() if done is None or _is_bad(done)]
        remove_temporary(self.folder, [files[unit].path("") for unit in missing])
        otherwise = sum(files[u].path("json").exists() for u in missing if found[u] is None)
        progress.resume(units, missing, otherwise)
        scanner = Scanner(
            self.sources, self.recipe, encoder, self.tokenizer, self.folder, self.skip_bad_files
        )
        heaviest_first = sorted(missing, key=lambda unit: -unit.weight)
        for unit, documents in run_in_processes(scanner, heaviest_first, processes):
            progress.advance(unit, documents)

    def write(self, units: Sequence[Unit], files: AtomicFiles) -> "WrittenShard":
        """Decide what is kept and write it. Raises DataError: units not done, nothing kept, no space."""
        scanned = self._scanned(units)
        reasons = decide(scanned)
        fault_point("merge.decided")
        report = make_report(scanned, reasons, self.sources)
        if not report["kept"]:
            dropped = [f"{count} {why}" for why, count in report["dropped"].items()]
            bad = [f"bad file: {entry['error']}" for entry in report["bad_files"][:1]]
            raise DataError(
                f"no document in the {len(self.sources)} files of the input",
                f"dropped: {', '.join(dropped + bad) or 'nothing'}",
                "an input with text in it, other filters, or another --input-format",
            )
        remove_temporary(Path(self.shard).parent, [Path(f"{self.shard}.")])
        writer = IndexedDatasetWriter(self.shard, dtype_for(self.tokenizer.vocab_size), files)
        check_space(writer.prefix, _bytes_of_shard(scanned, reasons, writer.dtype.itemsize))
        for unit in scanned:
            _copy_kept(unit, reasons[unit.first : unit.first + unit.documents], writer)
        writer.finish(self._describe(scanned, report))
        return WrittenShard(writer, report)

    def _scanned(self, units: Sequence[Unit]) -> list[ScannedUnit]:
        scanned: list[ScannedUnit] = []
        first, described = 0, {unit: done for unit in units if (done := self.done(unit))}
        if missing := [unit for unit in units if unit not in described]:
            raise DataError(
                f"{len(missing)} of {len(units)} units of the input are not done, the first is {missing[0]}",
                "what is kept is decided over all of them",
                "the same command for the tasks that did not end well",
            )
        for unit, description in described.items():
            files, sources = UnitFiles(self.folder, unit.number), [p.source for p in unit.parts]
            scanned.append(ScannedUnit(files, description, sources, first))
            first += scanned[-1].documents
        return scanned

    def _describe(self, scanned: Sequence[ScannedUnit], report: dict) -> dict:
        parts = [part for unit in scanned for part in unit.parts]
        bad = {source for source, part in parts if "error" in part}
        read = [
            part["described"] for source, part in parts if "described" in part and source not in bad
        ]
        return {
            "kind": "text",
            "version": __version__,
            "append_eod": self.recipe.append_eod,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "vocab_size": self.tokenizer.vocab_size,
            "options": self.recipe.to_dict(),
            "sources": read,
            "report": report,
        }


def _is_bad(done: dict) -> bool:
    """Whether a unit that was scanned had a file that could not be read."""
    return any("error" in part for part in done["parts"])


@dataclass(frozen=True)
class WrittenShard:
    """A shard that is written, and the account of its making."""

    writer: IndexedDatasetWriter
    report: dict


def make_report(
    scanned: Sequence[ScannedUnit], reasons: np.ndarray, sources: Sequence[Source]
) -> dict:
    """What became of the documents, for people: JSON, equal for equal inputs."""
    counts = np.bincount(reasons, minlength=len(REASONS)).tolist()
    del counts[CODES[IN_BAD_FILE]]  # how many were read before the damage means nothing
    parts = [part for unit in scanned for part in unit.parts]
    bad: dict[int, str] = {}
    for source, part in parts:
        if "error" in part:
            bad.setdefault(source, part["error"])
    good = [part for source, part in parts if source not in bad]
    notes: dict[str, dict] = {}
    for what, seen in (item for part in good for item in part["notes"].items()):
        first = {"texts": 0, "first": seen["first"]}
        notes.setdefault(what, first)["texts"] += seen["texts"]
    return {
        "documents": int(sum(counts)),
        "kept": counts[0],
        "dropped": {reason: n for reason, n in zip(REASONS[1:-1], counts[1:], strict=True) if n},
        "notes": notes,
        "overlaps": [found for part in good for found in part["overlaps"]][:MOST_OVERLAPS],
        "bad_files": [
            {"file": str(sources[number].path), "error": bad[number]} for number in sorted(bad)
        ],
    }


def _copy_kept(unit: ScannedUnit, reasons: np.ndarray, writer: IndexedDatasetWriter) -> None:
    """Append the kept documents of a unit to the shard, in their order."""
    with open(unit.files.path("tokens"), "rb") as stream:
        for start in range(0, unit.documents, DOCUMENTS):
            lengths = unit.read_documents(start, DOCUMENTS)["tokens"].astype(np.int64)
            ids = np.fromfile(stream, writer.dtype, int(lengths.sum()))
            kept = reasons[start : start + DOCUMENTS] == 0
            if not kept.all():
                ids, lengths = ids[np.repeat(kept, lengths)], lengths[kept]
            writer.add_documents(ids, lengths)
            fault_point("merge.copied")


def _bytes_of_shard(scanned: Sequence[ScannedUnit], reasons: np.ndarray, itemsize: int) -> int:
    """Of .bin and .idx, exactly."""
    total, kept = 0, 0
    for unit in scanned:
        chosen = reasons[unit.first : unit.first + unit.documents] == 0
        total += int(unit.read_documents()["tokens"][chosen].sum(dtype=np.int64)) * itemsize
        kept += int(chosen.sum())
    return total + kept * (4 + 8 + 8)


def check_space(prefix: str, needed: int) -> None:
    """Raises SpaceError where the disk has no room for `needed` bytes under this name."""
    free = free_bytes(Path(prefix).parent)
    if free < needed:
        raise SpaceError(
            f"{prefix} needs {decimal(needed)}, {decimal(free)} are free",
            "the shard would be cut",
            "room on that disk, or another --output-prefix; what is scanned is kept",
        )
