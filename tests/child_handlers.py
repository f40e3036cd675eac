"""Handlers for ``twistd ipc`` children: what one does with an envelope is asked for in its ``target``.

Every other envelope is first appended to the file that ``IPC_TEST_RECORDS`` names, as a line of JSON. The receipt says
*accepted* only after the handler was called, so whoever has the receipt finds the line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred, fail

from ipc_twisted import SecureEnvelope, SecureIPCProtocol
from ipc_twisted.handlers import echo

ALIVE = "alive"
"""The target of messages that only find out whether they are accepted; they are not recorded."""

RAISED = "a text that no peer may see"

Result = Deferred[Any] | Coroutine[Any, Any, Any] | None


def by_target(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> Result:
    """Do what ``target`` names; echo if it names nothing here."""
    if envelope.target == ALIVE:
        return None
    _record(envelope)
    action = _ACTIONS.get(envelope.target) if isinstance(envelope.target, str) else None
    return echo(envelope, connection) if action is None else action(envelope, connection)


def _record(envelope: SecureEnvelope) -> None:
    fields = {name: getattr(envelope, name) for name in SecureEnvelope.__struct_fields__}
    fields["payload_bytes"] = envelope.payload_bytes[:1024].hex()
    with open(os.environ["IPC_TEST_RECORDS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(fields) + "\n")


def _keep(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> None:
    """Only record it."""


def _raise(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> None:
    raise RuntimeError(RAISED)


def _fail(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> Deferred[None]:
    return fail(RuntimeError(RAISED))


def _never(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> Deferred[None]:
    return Deferred()


def _nonsense(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> Any:
    return 42


def _close(_envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
    connection.close()


def _stop(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> None:
    from twisted.internet import reactor

    reactor.stop()


async def _wait_for_end(_envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
    """Go on after the connection is gone, and try to send."""
    await connection.wait_closed()
    connection.send("job.run", b"too late")


_ACTIONS: dict[str, Callable[[SecureEnvelope, SecureIPCProtocol], Result]] = {
    "keep": _keep,
    "raise": _raise,
    "fail": _fail,
    "never": _never,
    "nonsense": _nonsense,
    "close": _close,
    "stop": _stop,
    "wait-for-end": _wait_for_end,
}

not_callable = "not callable"
