"""Firefox by WebDriver BiDi, which it speaks itself: enough of it to open a page, type, and ask what is there."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
START = 120.0  # seconds that it may take to start on a busy machine


class Firefox:
    """A headless Firefox with a fresh profile; ``complaints`` is what its console had to say."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="poise-firefox-"))
        self.log = self.folder / "log"
        arguments = ["--headless", "--no-remote", "--profile", str(self.folder), "--remote-debugging-port", "0"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([str(FIREFOX), *arguments], stdout=log, stderr=log)
        self.loop = asyncio.new_event_loop()
        self.complaints: list[str] = []
        self._number = 0
        self._run(self._connect())

    def close(self) -> None:
        self._run(self._disconnect())
        self.process.terminate()
        self.process.wait(30)
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def open(self, url: str) -> None:
        self.command("browsingContext.navigate", {"context": self.context, "url": url, "wait": "complete"})

    def reload(self) -> None:
        self.command("browsingContext.reload", {"context": self.context, "wait": "complete"})

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, by way of JSON."""
        script = f"(async () => JSON.stringify((await ({expression})) ?? null))()"
        target = {"expression": script, "target": {"context": self.context}, "awaitPromise": True}
        answer = self.command("script.evaluate", target)
        if answer["type"] == "exception":
            raise AssertionError(answer["exceptionDetails"]["text"])
        return json.loads(answer["result"]["value"])

    def wait_for(self, expression: str, seconds: float = 30.0) -> None:
        """Until the expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise AssertionError(
                    f"{expression} did not come true; the page: {self.evaluate('document.body.innerText')}"
                )
            time.sleep(0.05)

    def type(self, text: str) -> None:
        """Press the keys of a text; a line break is Enter."""
        keys = [{"type": t, "value": "\ue007" if c == "\n" else c} for c in text for t in ("keyDown", "keyUp")]
        self.command(
            "input.performActions", {"context": self.context, "actions": [{"type": "key", "id": "k", "actions": keys}]}
        )

    def command(self, method: str, parameters: Mapping[str, Any]) -> Any:
        return self._run(self._command(method, parameters))

    def _run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    async def _connect(self) -> None:
        end = time.monotonic() + START
        while not (match := re.search(rb"BiDi listening on (ws://\S+)", self.log.read_bytes())):
            if time.monotonic() > end:
                raise AssertionError(f"Firefox did not start: {self.log.read_text(errors='replace')[-500:]}")
            await asyncio.sleep(0.1)
        self.session = aiohttp.ClientSession()
        self.socket = await self.session.ws_connect(f"{match[1].decode()}/session", max_msg_size=0)
        await self._command("session.new", {"capabilities": {}})
        await self._command("session.subscribe", {"events": ["log.entryAdded"]})
        tree = await self._command("browsingContext.getTree", {})
        self.context = tree["contexts"][0]["context"]

    async def _disconnect(self) -> None:
        await self.socket.close()
        await self.session.close()

    async def _command(self, method: str, parameters: Mapping[str, Any]) -> Any:
        self._number += 1
        await self.socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self.socket.receive_json(timeout=60)
            if message.get("method") == "log.entryAdded" and message["params"]["level"] in ("error", "warn"):
                self.complaints.append(str(message["params"]["text"]))
            if message.get("id") == self._number:
                if message["type"] == "error":
                    raise AssertionError(f"{method}: {message['error']}: {message['message']}")
                return message["result"]
