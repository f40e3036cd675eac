"""One measurement: a receiver and a sender, each a process of its own, both new."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DEADLINE_SECONDS = 600.0


class FailedError(Exception):
    """A side did not end as it should; the message is what it wrote to its standard error."""


def flood(system: str, size: int, warm: int, count: int) -> dict[str, Any]:
    """What ``count`` messages of ``size`` bytes cost: ``{"sender": …, "receiver": …}``, each as
    :meth:`benchmarks.work.Meter.read` has it."""
    return measure(system, "flood", receiver=(warm, count), sender=(size, warm, count))


def measure(system: str, work: str, *, receiver: tuple[int, ...], sender: tuple[int, ...]) -> dict[str, Any]:
    """What the sender prints.

    :param receiver: numbers for :data:`benchmarks.work.RECEIVERS`; ``sender``: for the function of the system.
    :raises FailedError: one of them ended otherwise.
    """
    with _child("receive", system, work, *receiver) as listening:
        try:
            where = _line(listening)
            with _child("send", system, work, *sender) as sending:
                try:
                    output, errors = sending.communicate(json.dumps(where) + "\n", DEADLINE_SECONDS)
                except subprocess.TimeoutExpired:
                    sending.kill()
                    raise FailedError(f"{system} {work}: not ended in {DEADLINE_SECONDS:g} s") from None
            if sending.returncode:
                raise FailedError(f"{system} {work}: {errors.strip()}")
            result: dict[str, Any] = json.loads(output)
            return result
        finally:
            listening.kill()


def _child(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603  # our own interpreter and module
        [sys.executable, "-m", "benchmarks.child", *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _line(child: subprocess.Popen[str]) -> Any:
    line = child.stdout.readline() if child.stdout else ""
    if not line:
        raise FailedError(child.communicate()[1].strip())
    return json.loads(line)
