"""Pages in headless Chromium, controlled with the Chrome DevTools Protocol.

With ``--remote-debugging-pipe`` Chromium reads commands from file descriptor 3 and writes answers and events to
descriptor 4: JSON objects, each followed by a zero byte. This requires neither a driver nor a WebSocket client.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import math
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"),
    "--remote-debugging-pipe",
)
# One end of a socket pair is both descriptors.
_START = 'exec "$@" 3<&"$0" 4>&"$0"'
_TIMEOUT_S = 60.0
_POLL_INTERVAL_S = 0.05
_INITIAL_HEIGHT = 800
# Space below the last element of a screenshot, in CSS pixels.
_MARGIN = 16


@contextlib.contextmanager
def open_page(url: str, *, width: int, dark: bool = False) -> Iterator[Page]:
    """Starts Chromium and yields a page that is loaded; ends Chromium afterwards.

    Args:
        url: Address of the page.
        width: Width of the page in CSS pixels.
        dark: Whether the page is to prefer dark colors.

    Raises:
        FileNotFoundError: Chromium is not installed.
        RuntimeError: The page cannot be loaded.
    """
    if PROGRAM is None:
        raise FileNotFoundError("Chromium is not installed; on Debian: apt-get install chromium")
    ours, theirs = socket.socketpair()
    # Chromium's other processes may still write when the first one has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, ours:
        with theirs:
            command = ["bash", "-c", _START, str(theirs.fileno()), PROGRAM, *_FLAGS, f"--user-data-dir={profile}"]
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        try:
            page = Page(ours, width=width, dark=dark)
            page.load(url)
            yield page
        finally:
            process.terminate()
            process.wait(_TIMEOUT_S)


class Page:
    """The only page of a browser.

    All methods raise ``RuntimeError`` if Chromium reports an error or has ended, and ``TimeoutError`` after a minute.
    """

    def __init__(self, connection: socket.socket, *, width: int, dark: bool) -> None:
        connection.settimeout(_TIMEOUT_S)
        self._connection = connection
        self._received = b""
        self._numbers = itertools.count(1)
        self._width = width
        self._session: dict[str, str] = {}
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        # Without transitions, which a screenshot might show halfway.
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        self._call("Emulation.setEmulatedMedia", features=[scheme, motion])
        self._resize(_INITIAL_HEIGHT)

    def load(self, url: str) -> None:
        """Loads the document at an address, with what it consists of."""
        answer = self._call("Page.navigate", url=url)
        if "errorText" in answer:
            raise RuntimeError(f"{url}: {answer['errorText']}")
        self.wait_for("location.href !== 'about:blank' && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression, which must be representable as JSON."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']['exception']['description']}")
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Waits until a JavaScript expression is true."""
        ends = time.monotonic() + _TIMEOUT_S
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > ends:
                raise TimeoutError(f"is not true after {_TIMEOUT_S:g} s: {condition}")
            time.sleep(_POLL_INTERVAL_S)

    def screenshot(self, last: str) -> bytes:
        """Returns a PNG of the page from its top to the bottom of an element.

        Args:
            last: CSS selector, of whose matches the first one is taken.
        """
        bottom = self.evaluate(f"document.querySelector({json.dumps(last)}).getBoundingClientRect().bottom")
        self._resize(math.ceil(bottom) + _MARGIN)
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _resize(self, height: int) -> None:
        size = {"width": self._width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result; events before it are dropped."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        self._connection.sendall(json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            part = self._connection.recv(1 << 20)
            if not part:
                raise RuntimeError("Chromium has ended")
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded
