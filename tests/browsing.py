"""A headless Chromium that is driven by its DevTools protocol: it uploads, types, and notes what it asks for."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

__all__ = ["Tab", "browsing", "program"]

BROWSERS = ("chromium-headless-shell", "chrome-headless-shell", "chromium")


def program() -> str | None:
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


class Tab:
    """One page. asked: the URLs that it asked for. said: what its console had to say."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.asked: list[str] = []
        self.said: list[str] = []
        for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            self._note(message)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.asked.append(parameters["request"]["url"])
        elif message.get("method") == "Log.entryAdded":
            self.said.append(parameters["entry"]["text"])
        elif message.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.said.append(json.dumps(parameters)[:500])

    def run(self, script: str) -> Any:
        """The value of an expression on the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression holds; the test's own time limit ends what never does."""
        while not self.run(script):
            time.sleep(0.02)

    def open(self, url: str, *, size: tuple[int, int] = (1280, 900), dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=size[0] < 600,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && document.querySelector('h2').textContent !== ''")

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file as a person does in the dialog."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        # a relative path is no file to the browser, and nothing says so
        self.call("DOM.setFileInputFiles", files=[str(file.absolute())], nodeId=node)

    def press(self, key: str) -> None:
        """Press and release a key such as Tab or Enter."""
        down: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": {"Tab": 9, "Enter": 13}[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **down, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **down)

    def picture(self, path: Path) -> None:
        """Write a PNG of the whole page."""
        path.write_bytes(
            base64.b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"])
        )


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Callable[[], contextlib.AbstractContextManager[Tab]]]:
    """A function that opens a new page in one browser."""
    argv = [
        *(program() or "", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
        *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
        *("--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"),
    ]
    # a group of its own: the program may be a script that starts the browser
    browser = subprocess.Popen(argv, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        told = folder / "DevToolsActivePort"
        while not told.exists() or not told.read_text().strip():
            assert browser.poll() is None
            time.sleep(0.02)
        port = told.read_text().split()[0]

        @contextlib.contextmanager
        def tab() -> Iterator[Tab]:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
            with urllib.request.urlopen(request) as answer:
                place = json.load(answer)["webSocketDebuggerUrl"]
            with connect(place, max_size=None) as socket:
                yield Tab(socket)

        yield tab
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait(30)
