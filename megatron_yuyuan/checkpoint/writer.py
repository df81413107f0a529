"""DCP's files, their sha256 computed from the bytes on their way to the disk."""

import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import serialization
from torch.distributed.checkpoint.filesystem import FileSystem

from megatron_yuyuan.faults import fault_point

BESIDE = 1 << 18
"""Pieces of at least so many bytes are hashed by a second thread; handing over a smaller one costs more."""
PORTION = 1 << 25
"""Bytes after which a file is sent on its way to the disk."""


class DigestingWriter(dcp.FileSystemWriter):
    """DCP's writer, which remembers size and sha256 of each file that this rank has written.

    Reading the files again would cost a second pass, and would vouch for what came back from the
    disk; this vouches for what was in memory. A file is flushed to the disk before it counts.
    """

    def __init__(self, path: Path, one_file: bool = True):
        """one_file: for all tensors of this rank. DCP keeps the tensors of a file until the file is written."""
        super().__init__(path, single_file_per_rank=one_file)
        self.digests: dict[str, dict] = {}
        """{file name: {"bytes", "sha256"}}."""
        self.fs = _DigestingFileSystem(self.digests)


@contextmanager
def without_crc32() -> Iterator[None]:
    """Within it torch.save leaves out the CRC32 of each record, which torch.load never looks at: the sha256
    of the file takes its time."""
    computed = serialization.get_crc32_options()
    serialization.set_crc32_options(False)
    try:
        yield
    finally:
        serialization.set_crc32_options(computed)


class _DigestingFileSystem(FileSystem):
    def __init__(self, digests: dict[str, dict]):
        self._digests = digests

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        fault_point("save.file_begun")
        with super().create_stream(path, mode) as raw, _DigestingStream(raw) as stream:
            yield stream
        self._digests[Path(path).name] = stream.entry()
        fault_point("save.file_written")

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        super().rename(path, new_path)
        self._digests[Path(new_path).name] = self._digests.pop(Path(path).name)


class _DigestingStream(io.IOBase):
    """Passes bytes on to a file opened for writing, and knows their number and sha256.

    A thread digests a large piece while this one writes it, and is waited for before the piece may be changed:
    neither is copied.
    """

    def __init__(self, raw: io.IOBase):
        self._raw, self._sha256, self._bytes, self._sent = raw, hashlib.sha256(), 0, 0
        self._beside = ThreadPoolExecutor(1, "sha256")

    def write(self, data) -> int:
        size = memoryview(data).nbytes
        if size < BESIDE:
            self._sha256.update(data)
            self._raw.write(data)
        else:
            digested = self._beside.submit(self._sha256.update, data)
            self._raw.write(data)
            digested.result()
        self._bytes += size
        if self._bytes - self._sent >= PORTION and hasattr(os, "posix_fadvise"):
            self._send()
        fault_point("save.in_file")
        return size

    def _send(self) -> None:
        """Let the disk begin while the next tensors are digested; by itself the system would wait
        for the fsync. On Linux, to say that the pages are not needed starts writing them."""
        self._raw.flush()
        length = self._bytes - self._sent
        os.posix_fadvise(self._raw.fileno(), self._sent, length, os.POSIX_FADV_DONTNEED)
        self._sent = self._bytes

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        self._raw.flush()

    def fileno(self) -> int:
        self._raw.flush()  # who asks for it is about to fsync
        return self._raw.fileno()

    def writable(self) -> bool:
        return True

    def entry(self) -> dict:
        self._beside.shutdown()
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}
