"""Reading what people hand over, plain or gzip; writing files that are whole or absent."""

import fcntl
import gzip
import hashlib
import io
import os
import platform
import re
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from megatron_yuyuan.errors import ConfigError, DataError, refused_by_disk
from megatron_yuyuan.faults import fault_point

if TYPE_CHECKING:
    import zstandard

HOST = re.sub(r"[^A-Za-z0-9-]", "_", platform.node())
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
"""How compressed files begin."""
Input = io.BufferedReader | gzip.GzipFile
"""What reads bytes ahead of who asks for them: `peek`."""


@contextmanager
def open_input(path: str | Path) -> Iterator[Input]:
    """Open a file for buffered reading of its (decompressed) bytes; gzip and zstd are known by their
    first bytes, not by a name.

    Raises DataError, also while the caller reads: path missing or unreadable, nothing in it, compressed
    stream cut or damaged, zstd without the package that reads it.
    """
    damaged = _damage()
    try:
        with open(path, "rb") as raw:
            stream = _decompressed(raw, raw.peek(4)[:4], path)
            if not stream.peek(1):
                raise DataError(
                    f"{path} is empty",
                    "an input that adds nothing is a mistake somewhere",
                    "fetch the file again, or leave it out",
                )
            yield stream
    except EOFError:
        raise DataError(
            f"{path}: the compressed stream ends early",
            "the rest of the file is missing",
            "download it again and compare its checksum",
        ) from None
    except damaged as error:
        raise DataError(
            f"{path}: damaged compressed stream: {error}",
            "its text cannot be trusted",
            "download it again and compare its checksum",
        ) from None
    except OSError as error:
        raise cannot_read(path, error) from None


def is_compressed(path: str | Path) -> bool:
    """Whether a file begins as gzip or zstd does. Raises DataError."""
    try:
        with open(path, "rb") as raw:
            return raw.read(4).startswith((GZIP, ZSTD))
    except OSError as error:
        raise cannot_read(path, error) from None


def _decompressed(raw: io.BufferedReader, magic: bytes, path: str | Path) -> Input:
    """A buffered stream of the content; isal (extra `fast`) unzips three times as fast as zlib."""
    if magic[:2] == GZIP:
        try:
            from isal import igzip
        except ImportError:
            return gzip.GzipFile(fileobj=raw)
        return igzip.IGzipFile(fileobj=raw)
    if magic == ZSTD:
        try:
            import zstandard
        except ImportError:
            raise DataError(
                f"{path} is compressed with zstd",
                "the package zstandard reads it, and is not installed",
                "pip install 'megatron_yuyuan[fast]', or decompress the file",
            ) from None
        unzip = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # what `zstd --long=31` writes
        return io.BufferedReader(_ZstdFrames(raw, unzip))
    return raw


def _damage() -> tuple[type[Exception], ...]:
    """What the libraries raise for a damaged stream."""
    kinds: list[type[Exception]] = [gzip.BadGzipFile, zlib.error]
    with suppress(ImportError):
        from isal import igzip_lib

        kinds.append(igzip_lib.IsalError)  # type: ignore[arg-type]  # isal's stub takes it for an instance
    with suppress(ImportError):
        import zstandard

        kinds.append(zstandard.ZstdError)
    return tuple(kinds)


class _ZstdFrames(io.RawIOBase):
    """The content of zstd frames, one after another. Raises EOFError for a frame that is cut, which the
    library's own stream_reader takes for its end."""

    def __init__(self, raw: BinaryIO, decompressor):
        self._raw, self._decompressor = raw, decompressor
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = self._content = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._content:
            compressed = self._compressed or self._raw.read(io.DEFAULT_BUFFER_SIZE)
            if not compressed:
                if self._frame is not None:
                    raise EOFError
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._content, self._compressed = self._frame.decompress(compressed), b""
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._content))
        buffer[:size], self._content = self._content[:size], self._content[size:]
        return size


def existing_parent(directory: Path) -> Path:
    """The directory, or the first above it that exists."""
    directory = directory.absolute()
    return next(path for path in (directory, *directory.parents) if path.exists())


def free_bytes(directory: Path) -> int:
    """Bytes that are free for a directory, which need not exist yet."""
    return shutil.disk_usage(existing_parent(directory)).free


def cannot_read(
    path: str | Path, error: OSError, why: str = "it was named on the command line"
) -> DataError:
    """The error for a file that the system will not open or read."""
    return DataError(
        f"cannot read {path}: {error.strerror}", why, "a path that exists and may be read"
    )


def describe_source(path: str | Path) -> dict:
    """{"file": name, "bytes": size on disk, "sha256": hex} of an input.

    Raises DataError: not to be read, or not what the .md5 file beside it says (PubMed's are
    `MD5(NAME)= hex`, md5sum's `hex  NAME`).
    """
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    promised = _promised_md5(path)
    try:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                sha256.update(block)
                if promised:
                    md5.update(block)
        size = os.path.getsize(path)
    except OSError as error:
        raise cannot_read(path, error) from None
    if promised and md5.hexdigest() != promised:
        raise DataError(
            f"{path}: md5 {md5.hexdigest()}, and {Path(path).name}.md5 says {promised}",
            "it is not the file that was published",
            "download it again, or remove the .md5 file if it belongs to another version",
        )
    return {"file": Path(path).name, "bytes": size, "sha256": sha256.hexdigest()}


def _promised_md5(path: str | Path) -> str:
    """The md5 that stands in PATH.md5; empty without such a file."""
    try:
        said = Path(f"{path}.md5").read_text("ascii", "replace")
    except OSError:
        return ""
    found = re.search(r"(?:^|=)\s*([0-9a-f]{32})\b", said, re.IGNORECASE | re.MULTILINE)
    return found[1].lower() if found else ""


class AtomicFiles:
    """Files that appear together and whole under their names, or not at all.

    Each is written under a temporary name in the folder of its target. When the `with` block ends
    well, all are flushed to the disk and then renamed, in the order in which they were opened; when
    it does not, files and folders made on the way are removed. Raises DataError where the disk
    refuses (no permission), and of these SpaceError where it or the quota is full.

    Old files under the same names are removed, last one first, just before the renames: a reader
    never finds a new .bin under an old .idx.
    """

    def __init__(self):
        self._open: dict[Path, BinaryIO] = {}  # target -> stream on its temporary file
        self._folders: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def open(self, target: str | Path) -> BinaryIO:
        """A writable binary stream whose content becomes `target`. Raises ConfigError for one that is written
        already, and DataError."""
        target = Path(target)
        if target in self._open:
            raise ConfigError(
                f"{target} is named for two outputs", "one would replace the other", "another name"
            )
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
            fault_point("files.synced")
        if len(self._open) > 1:
            for target in reversed(self._open):
                target.unlink(missing_ok=True)
        for target in self._open:
            os.replace(_temporary(target), target)
            fault_point("files.renamed")
        for folder in {target.parent for target in self._open}:
            to_disk(folder)


def to_disk(path: Path) -> None:
    """Flush a file or a directory to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there. Raises DataError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{HOST}.{os.getpid()}.tmp")


def remove_temporary(folder: Path, targets: Iterable[Path]) -> None:
    """Remove what killed processes left in a folder under the temporary names of `targets`, or of files
    whose names begin like one of them. Nobody may be writing these."""
    begins = tuple(f".{target.name}" for target in targets)
    if begins and folder.exists():
        for file in folder.iterdir():
            if file.name.startswith(begins) and file.name.endswith(".tmp"):
                file.unlink(missing_ok=True)


LETTING_GO = 1.0
"""Seconds in which the system ends a killed process, and a child that was being forked with its lock."""


@contextmanager
def hold(folder: Path, shared: bool) -> Iterator[None]:
    """Hold a folder for this process: alone, or together with others that hold it `shared`.

    Raises ConfigError where another process holds it otherwise. The system lets go of it when the
    process ends in whatever way; on a file system without locks nothing is held.
    """
    make_folder(folder)
    with open(folder / "lock", "ab") as stream:
        os.register_at_fork(after_in_child=stream.close)  # this process holds it, not its children
        deadline = time.monotonic() + LETTING_GO
        while not _locked(stream, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{folder} is in use by another process",
                    "two that write the same outputs would disturb each other",
                    "wait until it ends, or another --output-prefix",
                )
            time.sleep(0.02)
        yield


def _locked(stream: BinaryIO, kind: int) -> bool:
    """Whether the lock is taken; also where there are no locks."""
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _cannot_write(target: str | Path, error: OSError) -> DataError:
    return refused_by_disk(error)(
        f"cannot write {target}: {error.strerror}",
        "the output would be incomplete",
        "a folder with room that may be written to",
    )
