"""The handler of the soak scenarios' receivers: it writes each envelope down before it does what ``target`` asks for.

A line ``h TRACE_ID`` is in the log, by one write of the system's, before the handler returns: so before anybody can be
told *accepted*, and it stays there if the process is killed. ``d TRACE_ID`` says that a handler which takes time is
done. A target is a verb and its arguments: ``wait:1.5``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.task import deferLater

from ipc_twisted import NotConnected, SecureEnvelope, SecureIPCProtocol, SendBufferFull
from ipc_twisted.factory import SharedFactory
from ipc_twisted.statistics import statistics

Result = Deferred[Any] | None

_one_at_a_time = DeferredLock()


def by_target(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> Result:
    """Write it down, then do what ``target`` names; nothing more without one."""
    target = envelope.target
    if target is None:
        os.write(_log(), b"h %s\n" % str(envelope.trace_id).encode())
        return None
    verb, *arguments = str(target).split(":")
    if verb not in _UNRECORDED:
        os.write(_log(), b"h %s\n" % str(envelope.trace_id).encode())
    return _VERBS[verb](envelope, connection, *arguments)


@cache
def _log() -> int:
    return os.open(os.environ["IPC_TEST_RECORDS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _done(_: object, envelope: SecureEnvelope) -> None:
    os.write(_log(), b"d %s\n" % str(envelope.trace_id).encode())


def _later(seconds: float) -> Deferred[None]:
    from twisted.internet import reactor

    return deferLater(reactor, seconds)


def _cut(_envelope: SecureEnvelope, connection: SecureIPCProtocol) -> Result:
    """End the connection at once and without a CLOSE."""
    connection.transport.abortConnection()
    return None


def _wait(envelope: SecureEnvelope, _connection: SecureIPCProtocol, seconds: str) -> Result:
    """Take some time, beside the others."""
    return _later(float(seconds)).addCallback(_done, envelope)


def _queue(envelope: SecureEnvelope, _connection: SecureIPCProtocol, seconds: str) -> Result:
    """Take some time, one after the other."""
    return _one_at_a_time.run(_later, float(seconds)).addCallback(_done, envelope)


def _block(envelope: SecureEnvelope, _connection: SecureIPCProtocol, seconds: str) -> Result:
    """Take the whole process for some time, as handlers should not."""
    time.sleep(float(seconds))
    _done(None, envelope)
    return None


def _send(_envelope: SecureEnvelope, connection: SecureIPCProtocol, size: str) -> Result:
    """Send as much as may be sent, and go on whenever there is room, until the connection ends."""

    async def fill() -> None:
        while True:
            try:
                connection.send("job.run", os.urandom(int(size))).add_done_callback(lambda _: None)
            except SendBufferFull:
                await connection.drained()
            except NotConnected:
                return

    return Deferred.fromCoroutine(fill())


def _alive(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> Result:
    """Only be accepted."""
    return None


def _report(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> Result:
    """Answer with what this process holds."""
    from twisted.internet import reactor

    gc.collect()
    factory = cast(SharedFactory, connection._shared)
    held = {
        "timers": len(reactor.getDelayedCalls()),
        "sockets": len(reactor.getReaders()),
        "transports": len(factory.transports),
        "objects": len(gc.get_objects()),
        "traced": tracemalloc.get_traced_memory()[0],
        "by_line": _by_line() if tracemalloc.is_tracing() else [],
        "statistics": msgspec.to_builtins(statistics(factory)),
    }
    connection.send("job.run", json.dumps(held).encode(), trace_id=envelope.trace_id).add_done_callback(lambda _: None)
    return None


def _trim(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> Result:
    """Give back to the system what is free: what is resident then is in use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return None


def _trace(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> Result:
    """From now on, remember where memory is taken."""
    tracemalloc.start()
    return None


def _by_line() -> list[tuple[str, int, int]]:
    """Where memory was taken: the line, bytes, blocks."""
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, tracemalloc.__file__)])
    found = []
    for line in snapshot.statistics("lineno"):
        frame = line.traceback[0]
        found.append(("/".join(Path(frame.filename).parts[-2:]) + f":{frame.lineno}", line.size, line.count))
    return found


_UNRECORDED = {"alive", "report", "trace", "trim"}
_VERBS: dict[str, Callable[..., Result]] = {
    "cut": _cut,
    "wait": _wait,
    "queue": _queue,
    "block": _block,
    "send": _send,
    "alive": _alive,
    "report": _report,
    "trace": _trace,
    "trim": _trim,
}
