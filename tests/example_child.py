"""``python -m examples.web_execution`` as a child process, and what a page would see of it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.child_output import ChildOutput

ROOT = Path(__file__).parent.parent
TIMEOUT = 60.0


class ExampleChild:
    """As a context manager: it serves when the block begins, and is gone behind it.

    :param folder: for its temporary files.
    """

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.web_execution", "--port", "0"],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._output = ChildOutput(self.process)

    def __enter__(self) -> Self:
        try:
            self.port = int(self.wait_for(r"Open http://127\.0\.0\.1:(\d+)/")[1])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._output.log

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the output holds ``pattern``, a regular expression."""
        return self._output.wait_for(pattern, TIMEOUT)

    def ask(
        self, method: str, path: str, content: object = None, **headers: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request as the page would make it.

        :param headers: in place of those; None leaves one out.
        :returns: status, headers with their names in lower case, and content.
        """
        sent: dict[str, str | None] = {"Host": f"127.0.0.1:{self.port}", "Origin": self.origin, **headers}
        body = None if content is None else json.dumps(content).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(len(body or b"")))
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def post(self, path: str, content: object = None) -> Any:
        """What must work."""
        status, _, answer = self.ask("POST", path, content)
        if status not in (200, 202):
            raise AssertionError(f"{path}: {status} {answer!r}")
        return json.loads(answer)

    def events(self) -> EventStream:
        return EventStream(self.port)

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ctrl-C, unless told otherwise, and wait."""
        self.process.send_signal(number)
        code = self.process.wait(TIMEOUT)
        self._output.join(TIMEOUT)
        return code

    def close(self) -> None:
        self._output.close(TIMEOUT)


class EventStream:
    """What the page is told, read as it comes.

    :ivar log: texts of what happened.
    """

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        self._connection.request("GET", "/events")
        self._response = self._connection.getresponse()
        if self._response.status != 200:
            raise AssertionError(f"/events: {self._response.status}")
        self.log: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response.close()
        self._connection.close()

    def wait_for(self, name: str, holds: Callable[[Any], object] = lambda _: True) -> Any:
        """The next event of that name for which ``holds`` is true."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            event, content = self._next()
            if event == name and holds(content):
                return content
        raise AssertionError(f"no such event came: {name}; {self.log}")

    def wait_for_end(self) -> None:
        while self._response.readline():
            pass

    def _next(self) -> tuple[str, Any]:
        name = self._response.readline().decode().removeprefix("event: ").strip()
        if not name:
            raise AssertionError(f"the stream has ended: {self.log}")
        content = json.loads(self._response.readline().removeprefix(b"data: "))
        if self._response.readline() != b"\n":
            raise AssertionError(f"an event has no end: {content}")
        if name == "log":
            self.log.append(content["text"])
        return name, content
