"""Reading what people hand over, plain or gzip; writing files that are whole or absent."""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Self

from megatron_yuyuan.errors import DataError

JSON_DEPTH = "a line nested deeper than the JSON reader goes"


@contextmanager
def open_plain_or_gzip(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for buffered reading of its (decompressed) bytes; gzip is known by its first two
    bytes.

    Raises DataError, also while the caller reads: path missing or unreadable, nothing in it, gzip
    cut or damaged.
    """
    try:
        with open(path, "rb") as raw:
            is_gzip = raw.peek(2)[:2] == b"\x1f\x8b"
            stream = gzip.GzipFile(fileobj=raw) if is_gzip else raw
            if not stream.peek(1):
                raise DataError(
                    f"{path} is empty",
                    "an input that adds nothing is a mistake somewhere",
                    "fetch the file again, or leave it out",
                )
            yield stream
    except EOFError:
        raise DataError(
            f"{path}: the gzip stream ends early",
            "the rest of the file is missing",
            "download it again and compare its checksum",
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: damaged gzip: {error}",
            "its text cannot be trusted",
            "download it again and compare its checksum",
        ) from None
    except OSError as error:
        raise cannot_read(path, error) from None


def cannot_read(path: str | Path, error: OSError) -> DataError:
    """The error for a file that the system will not open or read."""
    return DataError(
        f"cannot read {path}: {error.strerror}",
        "it was named as an input",
        "a path that exists and may be read",
    )


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, object) for every line of a JSONL file that is not blank.

    Raises DataError with the line number: not UTF-8, not JSON, not an object, a lone surrogate in a
    string.
    """
    with open_plain_or_gzip(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if b"\\ud" in line or b"\\uD" in line:
                    json.dumps(record, ensure_ascii=False).encode("utf-8")
            except RecursionError:
                raise bad_line(path, number, JSON_DEPTH) from None
            except UnicodeEncodeError:
                raise bad_line(path, number, "half of a surrogate pair in a string") from None
            except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
                raise bad_line(path, number, str(error)) from None
            if not isinstance(record, dict):
                raise bad_line(path, number, f"a {type(record).__name__}, not an object")
            yield number, record


def read_jsonl_texts(path: str | Path, key: str = "text") -> Iterator[str]:
    """Yield the string under `key` of every line.

    Raises DataError with the line number: see `read_json_lines`; key missing (naming those seen);
    not a string.
    """
    for number, record in read_json_lines(path):
        yield string_of(record, (key,), path, number)


def string_of(record: dict, keys: tuple[str, ...], path: str | Path, number: int) -> str:
    """The string under the first of `keys` that `record` has. Raises DataError."""
    key = next((key for key in keys if key in record), None)
    if key is None:
        raise bad_line(
            path, number, f"no key {keys[0]!r}; it has {', '.join(map(repr, record)) or 'none'}"
        )
    if not isinstance(record[key], str):
        raise bad_line(path, number, f"{key!r} is a {type(record[key]).__name__}, not a string")
    return record[key]


def bad_line(path: str | Path, number: int, what: str) -> DataError:
    """The error for one line of a text file."""
    return DataError(
        f"{path}, line {number}: {what}",
        "every line must be one readable record",
        "mend or remove that line; --json-keys names the key that holds the text",
    )


def describe_source(path: str | Path) -> dict:
    """{"file": name, "bytes": size on disk, "sha256": hex} of an input. Raises DataError."""
    try:
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"file": Path(path).name, "bytes": os.path.getsize(path), "sha256": digest}
    except OSError as error:
        raise cannot_read(path, error) from None


class AtomicFiles:
    """Files that appear together and whole under their names, or not at all.

    Each is written under a temporary name in the folder of its target. When the `with` block ends
    well, all are flushed to the disk and then renamed, in the order in which they were opened; when
    it does not, files and folders made on the way are removed. Raises DataError where the disk
    refuses (no space, no permission).

    Old files under the same names are removed, last one first, just before the renames: a reader
    never finds a new .bin under an old .idx.
    """

    def __init__(self):
        self._open: dict[Path, BinaryIO] = {}  # target -> stream on its temporary file
        self._folders: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def open(self, target: str | Path) -> BinaryIO:
        """A writable binary stream whose content becomes `target`."""
        target = Path(target)
        try:
            missing = [folder for folder in target.absolute().parents if not folder.exists()]
            self._folders += [folder for folder in missing if folder not in self._folders]
            target.parent.mkdir(parents=True, exist_ok=True)
            self._open[target] = open(_temporary(target), "wb")  # noqa: SIM115
        except OSError as error:
            raise _cannot_write(target, error) from None
        return self._open[target]

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.publish()
        else:
            self.discard()
            if isinstance(error, OSError):  # inputs raise DataError: this one came from writing
                raise _cannot_write(next(iter(self._open), "the output"), error) from None

    def publish(self) -> None:
        """Give every file its name. Raises DataError where the disk refuses."""
        try:
            self._rename()
        except OSError as error:
            raise _cannot_write(next(iter(self._open)), error) from None
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what has no name yet, and the folders that were made for it."""
        for target, stream in self._open.items():
            with suppress(OSError):  # a full disk, reported already
                stream.close()
            _temporary(target).unlink(missing_ok=True)
        for folder in sorted(self._folders, key=lambda path: -len(path.parts)):
            with suppress(OSError):  # not empty: the outputs lie there
                folder.rmdir()

    def _rename(self) -> None:
        for stream in self._open.values():
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        if len(self._open) > 1:
            for target in reversed(self._open):
                target.unlink(missing_ok=True)
        for target in self._open:
            os.replace(_temporary(target), target)
        for folder in {target.parent for target in self._open}:
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


def _cannot_write(target: str | Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write {target}: {error.strerror}",
        "the output would be incomplete",
        "a folder with room that may be written to",
    )
