"""A web site on this machine that misbehaves as told."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """Serves `files` (path -> content), ranges included, and notes what was asked for.

    `faults[path]` are taken one a request, before the file is served in the usual way: each is
    given the handler and the content.
    """

    def __init__(self, address: str):
        self.netloc, self.url = address, f"http://{address}/"
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Callable]] = defaultdict(list)
        self.requests: list[tuple[str, str | None]] = []
        """(path, Range) of every request."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        site, path = self.server.site, self.path[1:]
        asked = self.headers["Range"]
        site.requests.append((path, asked))
        content = site.files.get(path, b"")
        if site.faults[path]:
            site.faults[path].pop(0)(self, content)
        elif path not in site.files:
            answer(404)(self, b"")
        elif asked:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            answer(206 if start < len(content) else 416)(self, content[start:])
        else:
            answer(200)(self, content)

    def log_message(self, *_):
        pass


def answer(status: int, **headers: str) -> Callable:
    """A handler that sends the content with this status."""

    def send(handler: _Handler, content: bytes, announced: int | None = None) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(announced or len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return send


def cut(num_bytes: int) -> Callable:
    """Announces the whole content, sends its first bytes, and hangs up."""

    def send(handler: _Handler, content: bytes) -> None:
        answer(200)(handler, content[:num_bytes], announced=len(content))
        handler.close_connection = True

    return send


def stall(num_bytes: int, reached: threading.Event, until: threading.Event) -> Callable:
    """Sends the first bytes, says so, and nothing more until told."""

    def send(handler: _Handler, content: bytes) -> None:
        answer(200)(handler, content[:num_bytes], announced=len(content))
        handler.wfile.flush()
        reached.set()
        until.wait(60)
        handler.close_connection = True

    return send


@contextmanager
def serve() -> Iterator[Site]:
    """A site for the time of a `with` block."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.site = Site(f"127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.site
        finally:
            server.shutdown()
            thread.join()
