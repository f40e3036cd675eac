"""The handlers that ``twistd ipc --handler`` can name without any code of yours."""

from __future__ import annotations

from twisted.logger import Logger

from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.errors import EnvelopeError, NotConnected, SendBufferFull
from ipc_twisted.protocol import SecureIPCProtocol

_log = Logger(namespace="ipc_twisted.handlers")


async def echo(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
    """Answer with the same kind, payload, ``trace_id`` and headers, and the envelope's ``reply_to`` as the target.

    Waits for room in the send buffer first: a peer that sends faster than it reads is slowed down by its credit.
    """
    while True:
        await connection.drained()
        try:
            connection.send(
                envelope.kind,
                envelope.payload_bytes,
                trace_id=envelope.trace_id,
                target=envelope.reply_to,
                headers=envelope.headers,
            )
        except SendBufferFull:  # a large one may need more room than half
            continue
        except NotConnected:
            pass  # nobody is left to answer
        except EnvelopeError as problem:  # such as a peer that takes no messages of this size
            _log.warn(
                "no echo: {problem} trace_id={trace_id!r}",
                event="echo_failed",
                problem=problem,
                trace_id=envelope.trace_id,
            )
        return


def log(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
    """Write a line for each envelope; not its payload, and what the peer wrote is escaped."""
    _log.info(
        "received kind={kind!r} trace_id={trace_id!r} target={target!r} payload_bytes={size} from {peer}",
        event="envelope_received",
        kind=envelope.kind,
        trace_id=envelope.trace_id,
        target=envelope.target,
        size=len(envelope.payload_bytes),
        peer=connection.peer_address,
    )
