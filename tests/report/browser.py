"""A headless Chromium, driven through its debugging pipe: what a page looks like, asks for, and complains
of. Source of the protocol: chromedevtools.github.io/devtools-protocol, over file descriptors 3 and 4."""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
LIMIT = 60.0
"""Seconds in which an answer comes."""
FLAGS = (
    "--headless=new --remote-debugging-pipe --no-sandbox --disable-gpu --no-first-run --hide-scrollbars "
    "--disable-dev-shm-usage --disable-background-networking --disable-component-update"
).split()


def find_chromium() -> str | None:
    """The path of a Chromium, if one is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a Chromium of its own. As a context: it ends with it, whatever happens."""

    def __init__(self, program: str):
        self._program, self._number, self._unread, self._session = program, 0, b"", ""
        self.heard: list[dict] = []
        """Every event of the page so far, as the protocol sends them."""

    def __enter__(self) -> Self:
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        command = [self._program, *FLAGS, f"--user-data-dir={self._home.name}", "about:blank"]
        pipes = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", pipes, "bash", *command], pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        os.set_blocking(self._in, False)
        [page] = [t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(self, *_) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._out)
        os.close(self._in)
        self._home.cleanup()

    def open(self, page: Path, width: int, dark: bool = False) -> None:
        """Show a file in a window of so many CSS pixels."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
                 mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.heard.clear()
        self.ask("Page.navigate", url=page.absolute().as_uri())
        self._until(lambda: any(e["method"] == "Page.loadEventFired" for e in self.heard))

    def evaluate(self, expression: str) -> object:
        """The value of a JavaScript expression in the page."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"][
            "value"
        ]

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def ask(self, method: str, **parameters: object) -> dict:
        """Send one command; its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answers: list[dict] = []
        self._until(lambda: answers, answers)
        if "error" in answers[0]:
            raise RuntimeError(f"{method}: {answers[0]['error']}")
        return answers[0]["result"]

    def _until(self, done, answers: list[dict] | None = None) -> None:
        """Read what comes until done()."""
        deadline = time.monotonic() + LIMIT
        while not done():
            for message in self._messages():
                if message.get("id") == self._number and answers is not None:
                    answers.append(message)
                elif "method" in message:
                    self.heard.append(message)
            assert time.monotonic() < deadline, "Chromium does not answer"
            assert self._process.poll() is None, "Chromium has ended"

    def _messages(self) -> list[dict]:
        try:
            self._unread += os.read(self._in, 1 << 20)
        except BlockingIOError:
            time.sleep(0.01)
        *whole, self._unread = self._unread.split(b"\0")
        return [json.loads(message) for message in whole]
