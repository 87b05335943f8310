"""Headless Chromium over the DevTools protocol on a pipe, so that it can live in any network namespace.

Every request, console message and exception of the page is kept: a test can say that there was none.
Protocol: https://chromedevtools.github.io/devtools-protocol/ (messages end with a zero byte).
"""

import asyncio
import contextlib
import fcntl
import itertools
import os
import signal
import tempfile
import time
from base64 import b64decode
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

DEADLINE_S = 30.0
POLL_S = 0.05
SWITCHES = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # it runs as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-service-autorun",
    "--mute-audio",
    "--hide-scrollbars",
    "--window-size=1280,1000",
)


class PageError(AssertionError):
    """The page or the protocol refused what the test asked for."""


class Browser:
    """One page. Use as an asynchronous context; the browser is gone afterwards."""

    def __init__(self, netns: str = "") -> None:
        """`netns`: path of the network namespace to run in; "": this one."""
        self.requests: list[str] = []
        """URLs, in order."""
        self.console: list[str] = []
        """Messages of the page's console, refusals of its security policy and uncaught exceptions."""
        self._netns = netns
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session = ""
        self._buffer = bytearray()

    async def __aenter__(self) -> Self:
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        self._log = Path(self._profile.name, "log")
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _start(self) -> None:
        # Chromium reads commands from 3 and writes to 4. A shell puts them there, from numbers that are not in its way.
        (commands, self._commands), (self._events, events) = os.pipe(), os.pipe()
        given = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands, events)]
        os.close(commands)
        os.close(events)
        inside = ("nsenter", f"--net={self._netns}", "--") if self._netns else ()
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._process = await asyncio.create_subprocess_exec(
            *inside,
            *("bash", "-c", f'exec "$@" 3<&{given[0]} 4>&{given[1]}', "chromium", "chromium"),
            *SWITCHES,
            f"--user-data-dir={self._profile.name}/profile",
            "about:blank",
            pass_fds=given,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "HOME": self._profile.name, "DBUS_SESSION_BUS_ADDRESS": "disabled:"},
            start_new_session=True,
        )
        for fd in (*given, log):
            os.close(fd)
        os.set_blocking(self._events, False)
        asyncio.get_running_loop().add_reader(self._events, self._read)
        targets = await self._send("Target.getTargets")
        page = next(one for one in targets["targetInfos"] if one["type"] == "page")
        attached = await self._send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Audits"):
            await self._send(f"{domain}.enable")

    async def _stop(self) -> None:
        if hasattr(self, "_process"):
            asyncio.get_running_loop().remove_reader(self._events)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
            os.close(self._commands)
            os.close(self._events)
        self._profile.cleanup()

    # The protocol

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._events, 1 << 16):
                self._buffer += chunk
            asyncio.get_running_loop().remove_reader(self._events)  # the browser has ended
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(PageError(f"the browser has ended: {self._log_tail()}"))
        *messages, rest = bytes(self._buffer).split(b"\0")
        self._buffer = bytearray(rest)
        for message in messages:
            self._take(orjson.loads(message))

    def _log_tail(self) -> str:
        return self._log.read_bytes()[-2000:].decode(errors="replace")

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            answer = self._answers.pop(message["id"], None)
            if answer is not None and not answer.done():
                answer.set_result(message)
            return
        params = message.get("params", {})
        match message["method"]:
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.consoleAPICalled":
                self.console.append(" ".join(str(one.get("value", one)) for one in params["args"]))
            case "Runtime.exceptionThrown":
                self.console.append(str(params["exceptionDetails"]))
            case "Log.entryAdded":
                self.console.append(f"{params['entry']['level']}: {params['entry']['text']}")
            case "Audits.issueAdded":
                self.console.append(f"issue: {params['issue']}")
            case "Page.javascriptDialogOpening":
                self.console.append(f"dialog: {params['message']}")

    async def _send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, orjson.dumps(message) + b"\0")
        async with asyncio.timeout(DEADLINE_S):
            found = await answer
        if "error" in found:
            raise PageError(f"{method}: {found['error']}")
        result: dict[str, Any] = found["result"]
        return result

    # What tests do

    async def open(self, url: str) -> None:
        """Go there. Returns when the document is there; what its script does may still be under way."""
        result = await self._send("Page.navigate", url=url)
        if result.get("errorText"):
            raise PageError(f"{url}: {result['errorText']}")

    async def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited where it is a promise."""
        result = await self._send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise PageError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def until(self, script: str, wanted: Any = True) -> Any:
        """Wait until an expression has a value (any true one where none is said)."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            value = await self.run(script)
            if value == wanted or (wanted is True and value):
                return value
            if time.monotonic() > deadline_s:
                raise PageError(
                    f"not within {DEADLINE_S:g} s: {script} is {value!r}, wanted {wanted!r}. {self.console}"
                )
            await asyncio.sleep(POLL_S)

    async def text(self, selector: str) -> str:
        """Text of the first element that a selector finds; "" where there is none."""
        return str(
            await self.run(f"(document.querySelector({orjson.dumps(selector).decode()}) || {{}}).textContent || ''")
        )

    async def rows(self, table: str) -> list[list[str]]:
        """Texts of the body cells of the table with an id."""
        rows = f"[...document.querySelectorAll('#{table} tbody tr')]"
        script = f"{rows}.map(row => [...row.cells].map(one => one.textContent))"
        found: list[list[str]] = await self.run(script)
        return found

    async def click(self, selector: str) -> None:
        """A real click in the middle of an element."""
        place = await self.run(
            f"(() => {{ const node = document.querySelector({orjson.dumps(selector).decode()});"
            " node.scrollIntoView({block: 'center', inline: 'center'});"
            " const box = node.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self._send("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    async def press(self, key: str) -> None:
        """A key, by its DOM name, where the focus is."""
        codes = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
        for kind in ("keyDown", "keyUp"):
            await self._send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    async def dark(self) -> None:
        """As people see it who prefer dark."""
        await self._send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])

    async def picture(self, *, height: int = 1000) -> bytes:
        """PNG of the top of the page."""
        clip = {"x": 0, "y": 0, "width": 1280, "height": height, "scale": 1}
        shot = await self._send("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return b64decode(shot["data"])
