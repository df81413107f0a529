"""Files from the network: fetched over https, resumed, compared with what was published, and named
only when whole.

    NAME.md5    the publisher's checksum
    NAME.part   what has come so far of the file with that checksum, also after a kill
    NAME        the whole file, its md5 checked
"""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event
from typing import TypeVar
from urllib.parse import urlsplit

from rich.filesize import decimal

from megatron_yuyuan.data.files import AtomicFiles, free_bytes
from megatron_yuyuan.errors import DataError, SpaceError, UnsafeError, refused_by_disk

Answer = TypeVar("Answer")

CHUNK = 1 << 18
LARGEST_READ = 64 << 20
"""Bytes of an answer that is kept in memory: a listing, a checksum, MedQuAD (7 MB)."""
ATTEMPTS = 5
TIMEOUT = 60
"""Seconds without a byte after which a connection is lost."""
PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses that another attempt may not meet."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
PUBMED_FILE = re.compile(rb"\bpubmed\d\dn(\d{4})\.xml\.gz(?!\.)")
MD5 = re.compile(
    r"\s*(?:MD5 ?\((?P<name>\S+)\) ?= ?(?P<md5>[0-9a-f]{32})|(?P<md5sum>[0-9a-f]{32}) [ *](?P<file>\S+))\s*",
    re.IGNORECASE,
)
"""`MD5(NAME)= hex` as PubMed writes it, `hex  NAME` as md5sum does."""


class ConnectionLost(Exception):
    """Less came than should have, for a reason that may pass."""


class Client:
    """Reads from some hosts and from no other.

    `hosts` are network locations (`ftp.ncbi.nlm.nih.gov`, `127.0.0.1:8000`); a redirect to another
    one is refused. The scheme is https; plain http only to this machine. What fails for a reason
    that may pass is tried again after `first_wait` seconds, then twice that, and so on, ATTEMPTS
    times in all.
    """

    def __init__(self, hosts: Collection[str], first_wait: float = 1.0):
        self._hosts, self._first_wait, self._stopped = hosts, first_wait, Event()
        proxies = {k: v for k, v in urllib.request.getproxies().items() if k == "https"}
        self._opener = urllib.request.OpenerDirector()  # knows no file: and no ftp:
        for handler in (
            urllib.request.ProxyHandler(proxies),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _Redirects(hosts),
        ):
            self._opener.add_handler(handler)
        self._opener.addheaders = [("User-Agent", "megatron_yuyuan")]

    def stop(self) -> None:
        """End the transfers under way at their next chunk; what came so far stays."""
        self._stopped.set()

    def read(self, url: str) -> bytes:
        """The content at `url`. Raises DataError (no answer, HTTP error, above LARGEST_READ) and
        UnsafeError (not https, another host)."""

        def attempt() -> bytes:
            content = bytearray()
            for chunk in self._chunks(self._open(url)):
                content += chunk
                if len(content) > LARGEST_READ:
                    raise DataError(
                        f"{url}: more than {LARGEST_READ >> 20} MB",
                        "a listing, a checksum or MedQuAD is far smaller",
                        "the address of the source itself",
                    )
            return bytes(content)

        return self._retried(url, attempt)

    def save(self, url: str, target: Path, md5_file: bytes) -> bool:
        """Make `target` the content at `url`, which `md5_file` describes. False: it was already.

        Raises DataError (see `read`; checksum unreadable), of these SpaceError (no room), and UnsafeError
        (see `read`; checksum not met).
        """
        md5 = parse_md5(md5_file, target.name)
        part, kept = Path(f"{target}.part"), Path(f"{target}.md5")
        try:
            if not (kept.exists() and kept.read_bytes() == md5_file):
                part.unlink(missing_ok=True)  # begun for another version of the file
                with AtomicFiles() as files:
                    files.open(kept).write(md5_file)
            if _md5_of(target).hexdigest() == md5:
                return False
            self._retried(url, lambda: self._complete(url, part, md5))
            os.replace(part, target)
        except OSError as error:
            raise refused_by_disk(error)(
                f"cannot write {part}: {error.strerror}",
                f"{target.name} is not whole yet",
                "a folder with room that may be written to; then the same command: it goes on where it stopped",
            ) from None
        return True

    def _complete(self, url: str, part: Path, md5: str) -> None:
        """Fetch what `part` lacks; remove it where the whole does not have that md5. Raises UnsafeError:
        all of it was fetched now, and it does not."""
        digest, held = _md5_of(part), part.stat().st_size if part.exists() else 0
        if digest.hexdigest() == md5:
            return  # ended between the last byte and the rename
        response = self._open(url, held)
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:  # all of it, asked for or not
            digest, held = _md5(), 0
        _require_room(part, response.length or 0)
        with open(part, "ab" if held else "wb") as stream:
            for chunk in self._chunks(response):
                stream.write(chunk)
                digest.update(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        if digest.hexdigest() != md5:
            part.unlink()
            if held:  # what was held may have been the fault
                raise ConnectionLost(f"resumed to md5 {digest.hexdigest()}, not {md5}")
            raise UnsafeError(
                f"{url}: md5 {digest.hexdigest()}, and its .md5 file says {md5}",
                "it is not the file that was published; it has been removed",
                "the same command again; if it stays so, ask the publisher",
            )

    def _open(self, url: str, start: int = 0) -> http.client.HTTPResponse:
        """The answer to a request for the bytes from `start` on."""
        _require_allowed(url, self._hosts)
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            return self._opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return self._open(url)  # what is held is longer than the file
            if error.code in PASSING:
                raise ConnectionLost(f"HTTP {error.code} {error.reason}") from None
            if 300 <= error.code < 400:
                raise _forbidden(error.headers.get("Location", url)) from None
            raise DataError(
                f"{url}: HTTP {error.code} {error.reason}",
                "the server does not give this file",
                "its listing in a browser; --files, or --base-url for a mirror",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionLost(getattr(error, "reason", error)) from None

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """The content of an answer, which is closed at the end."""
        received, expected = 0, response.length
        with response:
            while True:
                try:
                    chunk = response.read(CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise ConnectionLost(error) from None
                if not chunk:
                    break
                received += len(chunk)
                yield chunk
                if self._stopped.is_set():
                    raise CancelledError
        if expected not in (None, received):
            raise ConnectionLost(f"the answer ends after {received} of {expected} bytes")

    def _retried(self, url: str, attempt: Callable[[], Answer]) -> Answer:
        lost = None
        for count in range(ATTEMPTS):
            if count and self._stopped.wait(self._first_wait * 2 ** (count - 1)):
                raise CancelledError
            try:
                return attempt()
            except ConnectionLost as error:
                lost = error
        raise DataError(
            f"{url}: {lost} (attempt {ATTEMPTS} of {ATTEMPTS})",
            "the server or the way to it is down",
            "the same command later: it goes on where it stopped",
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to the hosts of its client, and to no other."""

    def __init__(self, hosts: Collection[str]):
        self._hosts = hosts

    def redirect_request(self, request, stream, code, message, headers, new_url):
        _require_allowed(new_url, self._hosts)
        return super().redirect_request(request, stream, code, message, headers, new_url)


def _require_allowed(url: str, hosts: Collection[str]) -> None:
    """Raises UnsafeError unless `url` is https, or http to this machine, at one of `hosts`."""
    parts = urlsplit(url)
    safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
    if not safe or parts.netloc not in hosts:
        raise _forbidden(url)


def _forbidden(url: str) -> UnsafeError:
    return UnsafeError(
        f"{url} is not fetched: neither https at a host that was asked for nor http at this machine",
        "on the way from elsewhere a file may be exchanged",
        "an https address; --base-url names a mirror that you trust",
    )


def parse_md5(md5_file: bytes, name: str) -> str:
    """The md5, 32 hexadecimal digits, that a checksum file gives for `name`. Raises DataError."""
    found = MD5.fullmatch(md5_file.decode("ascii", "replace"))
    if not found or (found["name"] or found["file"]) != name:
        raise DataError(
            f"{name}.md5 holds no md5 of {name}: {md5_file[:60]!r}",
            "a file without a checksum is not taken",
            "the same command later, or another mirror",
        )
    return (found["md5"] or found["md5sum"]).lower()


def pubmed_names(listing: bytes, first: int = 1, last: int = 9999) -> list[str]:
    """The PubMed files numbered `first` to `last` that a listing, HTML or plain, names, sorted.

    Raises DataError: none.
    """
    found = {match[0].decode(): int(match[1]) for match in PUBMED_FILE.finditer(listing)}
    names = sorted(name for name, number in found.items() if first <= number <= last)
    if not names:
        numbers = f"{min(found.values())} to {max(found.values())}" if found else "none"
        raise DataError(
            f"no PubMed file numbered {first} to {last} is listed",
            f"listed are: {numbers}",
            "other --files, or a --base-url that lists pubmedYYnNNNN.xml.gz",
        )
    return names


def download_with_md5(
    client: Client, base_url: str, names: Sequence[str], folder: Path, jobs: int
) -> Iterator[tuple[str, bool]]:
    """Fetch BASE_URL/NAME and BASE_URL/NAME.md5 for all `names`, `jobs` at a time.

    Yields (name, whether it was fetched now) as each is whole. An error, and an end of the caller's
    loop, stops the others; what they have stays in their .part files. Raises what `Client` does.
    """

    def fetch(name: str) -> tuple[str, bool]:
        md5_file = client.read(f"{base_url}{name}.md5")
        return name, client.save(f"{base_url}{name}", folder / name, md5_file)

    pool = ThreadPoolExecutor(jobs)
    try:
        for future in as_completed([pool.submit(fetch, name) for name in names]):
            yield future.result()
    finally:
        client.stop()
        pool.shutdown(wait=False, cancel_futures=True)


def _md5():
    return hashlib.md5(usedforsecurity=False)  # guards against damage; https against exchange


def _md5_of(path: Path):
    """The digest of a file so far; of nothing where there is none."""
    digest = _md5()
    if path.exists():
        with open(path, "rb") as stream:
            while block := stream.read(CHUNK):
                digest.update(block)
    return digest


def _require_room(part: Path, num_bytes: int) -> None:
    free = free_bytes(part.parent)
    if free < num_bytes:
        raise SpaceError(
            f"{part.parent}: {decimal(free)} free, and {part.stem} needs {decimal(num_bytes)}",
            "it would be cut",
            "another --output-dir, or room there; then the same command",
        )
