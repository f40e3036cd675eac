"""What a child process writes, read as it comes."""

from __future__ import annotations

import re
import subprocess
import threading
import time

from tests.leaks import SUITE


class ChildOutput:
    """Reads the standard output of a child in a thread of its own, which ends with the output.

    :param process: with a pipe for its standard output.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._log = ""
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        stream = self._process.stdout
        if stream is None:
            return
        with stream:
            for line in stream:
                SUITE.output(line)
                with self._changed:
                    self._log += line.decode(errors="surrogateescape")
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def log(self) -> str:
        """All output so far."""
        with self._changed:
            return self._log

    def wait_for(self, pattern: str, timeout: float, *, times: int = 1) -> re.Match[str]:
        """Wait until the output holds ``pattern`` (a regular expression) that many times; return the last of them."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while len(found := list(re.finditer(pattern, self._log))) < times:
                if self._ended or not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(f"{pattern!r} did not come {times} times; the output was:\n{self._log}")
            return found[times - 1]

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the output."""
        self._reader.join(timeout)

    def close(self, timeout: float) -> None:
        """End the child, in order if it can, reap it, and read to the end."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.join()
