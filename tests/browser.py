"""A headless Chromium that a test drives through the DevTools protocol: real keys, clicks and taps, no websocket.

    with browser.opened(url, width=390, dark=True) as page:
        page.press("ArrowRight")
        assert page.evaluate("document.title") == "..."
        assert page.problems == []

Where Chromium is not installed the test is skipped, the reason printed. The browser resolves no name but those of
loopback, and is ended by its own process id.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
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

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SKIP = "needs a browser: apt-get install chromium"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-breakpad", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"),
    *("--allow-file-access-from-files", "--remote-debugging-pipe"),
)
TIMEOUT_SECONDS = 60.0
_READ, _WRITE = 3, 4  # the descriptors of --remote-debugging-pipe
_CODES = {
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Escape": 27, " ": 32, "Tab": 9,
    "Home": 36, "End": 35, "Backspace": 8,
}  # fmt: skip
_TEXTS = {"Enter": "\r", " ": " "}


@contextlib.contextmanager
def opened(
    url: str, *, width: int = 1280, height: int = 900, dark: bool = False, touch: bool = False
) -> Iterator[Page]:
    """A page that has loaded `url`, in a browser of its own with a fresh profile."""
    if CHROMIUM is None:
        pytest.skip(SKIP)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, _process(profile) as pipe:
        page = Page(pipe, touch=touch)
        page.resize(width, height)
        page.prefer(dark=dark)
        page.go(url)
        yield page


class Page:
    """The one tab of a browser. `problems` collects uncaught exceptions, console errors, what the page's policy
    blocked, requests that failed, and dialogs (dismissed), each as a line of text."""

    def __init__(self, pipe: _Pipe, *, touch: bool) -> None:
        self.problems: list[str] = []
        self._pipe, self._touch = pipe, touch
        self._loaded = False
        target = self._call("Target.createTarget", on_page=False, url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", on_page=False, targetId=target, flatten=True)
        pipe.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        if touch:
            self._call("Emulation.setTouchEmulationEnabled", enabled=True)

    def go(self, url: str) -> None:
        """Loads `url`, and waits for its load event."""
        self._loaded = False
        answer = self._call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self._loaded:
            self._take(self._pipe.read(deadline))

    def evaluate(self, script: str) -> Any:
        """The JSON value of a JavaScript expression; a promise is awaited."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        failed = answer.get("exceptionDetails")
        assert failed is None, f"{script}: {failed['text']} {failed.get('exception', {}).get('description', '')}"
        return answer["result"].get("value")

    def wait(self, script: str, *, seconds: float = 60.0) -> Any:
        """The value of `script` once it is truthy."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            assert time.monotonic() < deadline, f"still not true after {seconds} s: {script}; {self.problems}"
            time.sleep(0.02)
        return value

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key pressed and released: a character, or a name such as `ArrowLeft`, `Enter`, `Tab`."""
        text = key if len(key) == 1 else _TEXTS.get(key, "")
        code = _CODES.get(key) or ord(key.upper())
        event: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self._call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **event)
        self._call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """`text` into the focused field."""
        self._call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """A mouse click (with `touch`, a tap) in the middle of the element, which must be visible and on top there."""
        x, y = self._middle(selector)
        if self._touch:
            self._call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
            self._call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
            return
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def resize(self, width: int, height: int = 900) -> None:
        """The window's size in CSS pixels; up to 600 wide it is a phone's."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width <= 600
        )

    def prefer(self, *, dark: bool) -> None:
        """The user's choice of light or dark."""
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self._call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path, *, width: int | None = None, dark: bool | None = None, whole: bool = True) -> None:
        """A PNG of the page, or (`whole` False) of what is in the window."""
        if width is not None:
            self.resize(width)
        if dark is not None:
            self.prefer(dark=dark)
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _middle(self, selector: str) -> tuple[float, float]:
        script = f"""(() => {{
            const wanted = document.querySelector({json.dumps(selector)});
            if (!wanted) return "no such element";
            wanted.scrollIntoView({{block: "center", inline: "center", behavior: "instant"}});
            const box = wanted.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
            const top = document.elementFromPoint(x, y);
            if (!top || !(wanted.contains(top) || top.contains(wanted))) return "hidden or covered";
            return [x, y];
        }})()"""
        found = self.evaluate(script)
        assert isinstance(found, list), f"{selector}: {found}"
        return found[0], found[1]

    def _call(self, method: str, *, on_page: bool = True, **params: Any) -> dict[str, Any]:
        number = self._pipe.send(method, params, on_page=on_page)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while True:
            message = self._pipe.read(deadline)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                answer: dict[str, Any] = message["result"]
                return answer
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Page.javascriptDialogOpening":
                self.problems.append(f"dialog: {params['message']}")
                self._pipe.send("Page.handleJavaScriptDialog", {"accept": False}, on_page=True)
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.problems.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                self.problems.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())


class _Pipe:
    """DevTools messages, each ended by a zero byte."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._left = b""
        self._number = 0
        self.session: str | None = None

    def send(self, method: str, params: dict[str, Any], *, on_page: bool) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if on_page:
            message["sessionId"] = self.session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._write, content) :]
        return self._number

    def read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._read, 1 << 20)
            assert chunk, "the browser has ended"
            self._left += chunk
        head, _, self._left = self._left.partition(b"\0")
        message: dict[str, Any] = json.loads(head)
        return message


@contextlib.contextmanager
def _process(profile: str) -> Iterator[_Pipe]:
    assert CHROMIUM is not None
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for pair in (os.pipe(), os.pipe()) for end in _closing(pair)]
    from_us, to_it, from_it, to_us = ends

    def install() -> None:
        os.dup2(from_us, _READ)
        os.dup2(to_us, _WRITE)

    with open(Path(profile) / "log", "wb") as log:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(_READ, _WRITE),
            preexec_fn=install,
            start_new_session=True,
        )
    for end in (from_us, to_us):
        os.close(end)
    try:
        yield _Pipe(to_it, from_it)
    finally:
        for end in (to_it, from_it):
            os.close(end)  # a browser whose pipe is closed ends by itself
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own session, so its own group
            process.wait(10)


def _closing(pair: tuple[int, int]) -> Iterator[int]:
    """Both ends, each closed after it was used: they may be the very numbers that the browser's ends must have."""
    for end in pair:
        yield end
        os.close(end)
