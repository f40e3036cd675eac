"""What a service has done and holds, in numbers."""

from __future__ import annotations

import msgspec

from ipc_twisted.factory import SharedFactory


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counted since a server was started or a client was made, but for what says *now*. Categories are as in
    :class:`ipc_twisted.Category`.

    :ivar accepted: envelopes handed over to the handler.
    :ivar rejected: envelopes of the other side's that were not, by category.
    :ivar handler_failures: handlers that raised.
    :ivar sent: messages of ours by what became of them: ``accepted``, or a category.
    :ivar unclaimed: those of them that were not accepted and that nobody awaited, by category.
    :ivar handshakes: by outcome: ``authenticated``, ``refused`` (no place even for a stranger), or a category.
    :ivar ended: connections that were authenticated, by the category they ended in.
    :ivar bytes_received: from all peers, strangers too; ``bytes_sent``: to them.
    :ivar connections: now authenticated; ``pending``: strangers now.
    :ivar in_flight: envelopes whose handlers have not ended now.
    :ivar unsettled: messages of ours without an outcome now; ``buffered``: bytes they count for.
    :ivar credit_messages: messages that the peers let us write now; ``credit_bytes``: bytes of their frames.
    :ivar guard_entries: nonces remembered now.
    :ivar guard_window_seconds: seconds back from now for which messages are still taken; the TTL, unless the guard is
        short of space.
    """

    accepted: int
    rejected: dict[str, int]
    handler_failures: int
    sent: dict[str, int]
    unclaimed: dict[str, int]
    handshakes: dict[str, int]
    ended: dict[str, int]
    bytes_received: int
    bytes_sent: int
    connections: int
    pending: int
    in_flight: int
    unsettled: int
    buffered: int
    credit_messages: int
    credit_bytes: int
    guard_entries: int
    guard_window_seconds: int


def statistics(factory: SharedFactory) -> Statistics:
    """Of all that a factory has made."""

    def counted(where: str) -> dict[str, int]:
        return {str(category): count for (place, category), count in factory.counters.items() if place == where}

    outboxes = {protocol.outbox for protocol in factory.connections} | set(factory.kept_outboxes)
    credit = [protocol.send_credit for protocol in factory.connections]
    return Statistics(
        accepted=factory.accepted,
        rejected=counted("rejected"),
        handler_failures=factory.counters["handler", "failed"],
        sent={str(category): count for category, count in factory.sent.items() if count},
        unclaimed=counted("unclaimed"),
        handshakes=counted("handshake"),
        ended=counted("ended"),
        bytes_received=factory.bytes_received,
        bytes_sent=factory.bytes_sent,
        connections=len(factory.connections),
        pending=len(factory.pending),
        in_flight=factory.handlers,
        unsettled=sum(outbox.unsettled for outbox in outboxes),
        buffered=sum(outbox.buffered for outbox in outboxes),
        credit_messages=sum(messages for messages, _ in credit),
        credit_bytes=sum(octets for _, octets in credit),
        guard_entries=len(factory.guard),
        guard_window_seconds=factory.guard.window(factory.now()),
    )
