"""Size and sha256 of the files of a directory, written beside them, and compared with them before
anything of them is used.

    manifest.json of a checkpoint, checksums.json of an export: {file name: {"bytes", "sha256"}}
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron_yuyuan.checkpoint.ranks import Ranks
from megatron_yuyuan.errors import DamagedError
from megatron_yuyuan.watch.saved import MANIFEST

STATE = "state.json"
CHECKSUMS = "checksums.json"
"""Of an export, in whose directory others have their own files too."""
THREADS = min(8, os.cpu_count() or 1)
"""That digest files of one rank; hashlib lets them run side by side."""


def digest(path: Path) -> dict:
    """{"bytes", "sha256"} of a file."""
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"bytes": stream.tell(), "sha256": sha256}


def digests(path: Path, names: Iterable[str] | None = None) -> dict[str, dict]:
    """{file name: `digest`} of these files of a directory, None for all but its manifest, as rank 0 lists
    them; of one that cannot be read {"error"}. The ranks share the reading, and the threads of a rank its
    part of it."""
    ranks = Ranks()
    listed = ranks.on_first(
        lambda: sorted(p.name for p in path.iterdir() if p.is_file() and p.name != MANIFEST)
    )
    mine = [name for name in listed if names is None or name in names][ranks.rank :: ranks.size]
    with ThreadPoolExecutor(THREADS) as threads:
        found = dict(zip(mine, threads.map(_try, (path / name for name in mine)), strict=True))
    return {
        name: entry
        for part in ranks.all_gather_object(found)
        for name, entry in sorted(part.items())
    }


def _try(path: Path) -> dict:
    try:
        return digest(path)
    except OSError as error:
        return {"error": error.strerror}


def verify(path: Path, manifest: str = MANIFEST) -> None:
    """Compare every file with the manifest. Raises DamagedError on every rank, naming each file at
    fault."""
    try:
        expected = Ranks().on_first(lambda: read_manifest(path, manifest))
        found = digests(path, expected)
        faults = _missing(expected, found)
        faults += [
            f"{name} {_said(found[name])}, expected {entry['bytes']} and {entry['sha256'][:12]}"
            for name, entry in expected.items()
            if name in found and found[name] != entry
        ]
    except OSError as error:
        faults = [f"{Path(error.filename or path).name}: {error.strerror}"]
    _refuse(path, faults, manifest)


def _said(found: dict) -> str:
    if "error" in found:
        return f"cannot be read ({found['error']})"
    return f"has {found['bytes']} bytes and sha256 {found['sha256'][:12]}"


def verify_sizes(path: Path, manifest: str = MANIFEST) -> None:
    """The quick part of it, which one process does before there are others: that the files are there and
    as long as they were, and the sha256 of state.json. Raises DamagedError."""
    try:
        expected = read_manifest(path, manifest)
        found = {file.name: file.stat().st_size for file in path.iterdir()}
        faults = _missing(expected, found)
        faults += [
            f"{name} has {found[name]} bytes of {entry['bytes']}"
            for name, entry in expected.items()
            if found.get(name, entry["bytes"]) != entry["bytes"]
        ]
        if not faults and STATE in expected and digest(path / STATE) != expected[STATE]:
            faults = [f"{STATE} has another sha256 than {manifest} says"]
    except OSError as error:
        faults = [f"{Path(error.filename or path).name}: {error.strerror}"]
    _refuse(path, faults, manifest)


def read_manifest(path: Path, manifest: str = MANIFEST) -> dict[str, dict]:
    """What a manifest says of each file, by name. Raises OSError, and DamagedError where it says nothing of
    a file that would be read."""
    try:
        entries = json.loads((path / manifest).read_text(encoding="utf-8"))
        sound = all(
            type(entry["bytes"]) is int and len(entry["sha256"]) == 64 and Path(name).name == name
            for name, entry in entries.items()
        )
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        entries, sound = {}, False
    faults = [] if sound else [f"{manifest} is not a table of sizes and checksums"]
    if sound and manifest == MANIFEST:
        read = {".metadata", STATE} | {file.name for file in path.glob("*.distcp")}
        faults = [f"{manifest} says nothing of {name}" for name in sorted(read - set(entries))]
    _refuse(path, faults, manifest)
    return dict(sorted(entries.items()))


def verify_export(path: Path) -> None:
    """`verify` of an export of ours. Other directories bring no checksums. Raises DamagedError."""
    if (path / CHECKSUMS).exists():
        verify(path, CHECKSUMS)


def _missing(expected: Iterable[str], found: Iterable[str]) -> list[str]:
    return [f"{name} is missing" for name in sorted(set(expected) - set(found))]


def _refuse(path: Path, faults: list[str], manifest: str) -> None:
    remedy = "an earlier checkpoint, by --ckpt-step"
    if manifest != MANIFEST:
        remedy = f"the directory as it was exported; without {manifest} it is opened unverified"
    if faults:
        what = f"{path} is damaged: {'; '.join(faults)}"
        raise DamagedError(what, "its weights cannot be trusted", remedy)
