"""A real headless Chromium for tests of pages, driven over the DevTools protocol.

The browser is a program of the machine (on Debian: apt-get install chromium-headless-shell). It
reads commands from one pipe and answers on another, so no further package is needed. This module
does not import core_hpc.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
DESKTOP, PHONE = (1280, 800), (390, 844)
LIMIT_S = 60.0


class Browser:
    """One page in a browser without a window.

    Args:
        program: the browser.
        home: a folder for its files.
    """

    def __init__(self, program: str, home: Path) -> None:
        self.messages: list[str] = []
        """Errors of the page: uncaught exceptions, and what the browser refuses or cannot load."""
        self.requests: list[str] = []
        """Addresses that the page asked for."""
        self._number, self._buffer = 0, b""
        out_read, self._write = os.pipe()
        self._read, in_write = os.pipe()
        # The browser reads commands from its descriptor 3 and writes to 4.
        command = f'exec "$@" 3<&{out_read} 4>&{in_write}'
        arguments = [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        arguments += ["--disable-dev-shm-usage", f"--user-data-dir={home}", "--hide-scrollbars", "about:blank"]
        with (home / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", command, "chromium", *arguments],
                pass_fds=(out_read, in_write),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(out_read)
        os.close(in_write)
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = None
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    _session: str | None = None

    def close(self) -> None:
        """End the browser.

        It is asked over its pipe. SIGTERM would reach only the shell script by which Debian starts the
        browser, and nothing at all if a parent of the tests ignores this signal, which is inherited.
        """
        self._session = None
        try:
            with contextlib.suppress(AssertionError, OSError):  # it has ended already
                self._call("Browser.close")
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:  # on a busy machine
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=30)
        os.close(self._read)
        os.close(self._write)

    def show(self, size: tuple[int, int], *, dark: bool = False) -> None:
        """Set the size of the page in pixels, and the light or dark colours."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=size[0] < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[feature])

    def open(self, address: str) -> None:
        """Load a page, and wait until it shows what the address asks for."""
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + LIMIT_S
        while not self.value(f"Boolean({condition})"):
            assert time.monotonic() < end, f"still not true: {condition}; messages of the page: {self.messages}"
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Click with the mouse in the middle of the element."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{found}.scrollIntoView({{block: 'center'}})")
        x, y, width, height = self.value(
            f"(() => {{ const b = {found}.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; }})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call(
                "Input.dispatchMouseEvent", type=kind, x=x + width / 2, y=y + height / 2, button="left", clickCount=1
            )

    def key(self, text: str) -> None:
        """Press a key that writes one character."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=text, text=text)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write what the page shows as a PNG file; `whole`: also what is below the window."""
        picture = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(params["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.messages.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], LIMIT_S)
            assert ready, f"the browser has not answered for {LIMIT_S} s"
            read = os.read(self._read, 1 << 20)
            assert read, "the browser has ended"
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser that ends with the block. The test is skipped if this machine has none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"this machine has no browser ({', '.join(PROGRAMS)}); on Debian: apt-get install {PROGRAMS[0]}")
    with tempfile.TemporaryDirectory(prefix="core-hpc-browser-", ignore_cleanup_errors=True) as home:
        started = Browser(program, Path(home))
        try:
            yield started
        finally:
            started.close()
