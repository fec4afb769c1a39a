"""A real browser for tests: Chromium without a window, spoken to through the DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PHONE, DESK = (390, 844), (1280, 900)
PATIENCE = 60.0  # seconds for one answer: a loaded machine starts a browser slowly


def find_browser() -> str | None:
    """The program, or None where there is no Chromium."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Browser:
    """One page of a headless Chromium. `messages` are its errors, warnings and whatever the page wrote to the console.

    folder: where the browser keeps its profile.
    """

    def __init__(self, folder: Path) -> None:
        program = find_browser()
        assert program is not None
        commands, self.input = _pipe()
        self.output, answers = _pipe()
        switches = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
                    "--no-first-run", "--disable-background-networking", f"--user-data-dir={folder}"]  # fmt: skip
        # A shell puts the pipes where Chromium looks for them: it reads from 3 and writes to 4.
        line = [
            "sh",
            "-c",
            f'exec "$@" 3</dev/fd/{commands} 4>/dev/fd/{answers}',
            "sh",
            program,
            *switches,
            "about:blank",
        ]
        self.process = subprocess.Popen(
            line, pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)},
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self.numbers, self.received, self.session = itertools.count(1), b"", None  # type: itertools.count[int], bytes, str | None
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.session = None
            self.call("Browser.close")
        finally:
            self.process.terminate()
            self.process.wait(timeout=30)
            os.close(self.input)
            os.close(self.output)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its answer."""
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.input, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        """The next message; what is no answer is noted."""
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.received:
            ready, _, _ = select.select([self.output], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self.output, 1 << 20) if ready else b""
            assert part, "the browser has ended" if ready else "the browser does not answer"
            self.received += part
        line, _, self.received = self.received.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Runtime.consoleAPICalled":
            self.messages.append(" ".join(str(part.get("value", part.get("description"))) for part in told["args"]))
        elif event == "Runtime.exceptionThrown":
            self.messages.append(told["exceptionDetails"]["text"])
        elif event == "Log.entryAdded":
            self.messages.append(told["entry"]["text"])
        elif event == "Page.javascriptDialogOpening":
            self.messages.append(f"dialog: {told['message']}")
            os.write(self.input, json.dumps({
                "id": next(self.numbers), "sessionId": self.session,
                "method": "Page.handleJavaScriptDialog", "params": {"accept": True},
            }).encode() + b"\0")  # fmt: skip
        elif event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event == "Page.loadEventFired":
            self.loaded = True

    def open(self, path: Path, *, size: tuple[int, int] = PHONE, dark: bool = False) -> None:
        """Load a file in a window of this size (of a phone when it is narrow), in a light or a dark surrounding."""
        width, height = size
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=2 if width < 600 else 1, mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.loaded = False
        answer = self.call("Page.navigate", url=path.resolve().as_uri())
        assert "errorText" not in answer, answer
        while not self.loaded:
            self._receive()

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = True) -> Path:
        """A PNG of the whole page, or of the window."""
        content = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(content))
        return path

    def pdf(self, path: Path) -> Path:
        """The page as it is printed on A4."""
        answer = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path


def _pipe() -> tuple[int, int]:
    """(read, write), both above the numbers that the shell hands out."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]
