"""Is the link well? ``ipc-twisted check``: connect as a client does, and send nothing that could be taken as work.

What goes over the wire is the handshake, a few probes, and CLOSE. A probe is an empty envelope that no server takes,
for two reasons, each enough: its kind is random, so it is in no server's ``allowed_kinds``, and its ``ts`` is 0, so it
is older than any TTL. The receipt that says so gives the round trip. Which second the server's clock shows cannot be
found out in this way: for each ``ts`` and an allowed kind there is a clock by which the message would be handed over.
But the two processes are on one host and so read one clock; where it was set back since, ``started_at`` tells.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, TimeoutError

from ipc_twisted import connection_file
from ipc_twisted.core.handshake import Limits
from ipc_twisted.dialling import Dialler, KeySource
from ipc_twisted.errors import (
    Category,
    ConfigError,
    ConnectionFileError,
    DeliveryUnknown,
    HandshakeError,
    IPCError,
    KeyFileError,
    NotConnected,
    Rejected,
)
from ipc_twisted.factory import SecureIPCClientFactory
from ipc_twisted.protocol import SecureIPCProtocol

PROBES = 3
"""The shortest round trip of them counts. The server logs each, and logs at most five such lines in ten seconds."""

REFUSED = (Category.KIND_NOT_ALLOWED, Category.EXPIRED)
"""What becomes of a probe."""

_STEPS: dict[type[IPCError], str] = {
    ConnectionFileError: "connection file",
    ConfigError: "key",  # there is none: what else can be wrong in the options is found before
    KeyFileError: "key",
    NotConnected: "server",
    HandshakeError: "handshake",
}


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    :ivar detail: what it is; what is wrong, and what to do.
    """

    check: str
    ok: bool
    detail: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was found; nothing behind the first finding that is not good.

    :ivar limits: the server's; None: the handshake was not done.
    :ivar round_trip_seconds: of the quickest probe; None: there was no receipt.
    """

    ok: bool
    findings: list[Finding]
    limits: dict[str, int] | None
    round_trip_seconds: float | None


async def check(
    reactor: Any, where: str | os.PathLike[str] | int, keyring: KeySource | None, service: str | None, seconds: float
) -> Report:
    """Look at everything that is needed to send; never fails.

    :param where: and ``keyring``, ``service``: as for :func:`ipc_twisted.connect`.
    :param seconds: for the connection, and again for each probe.
    """
    findings: list[Finding] = []
    limits: Limits | None = None
    round_trip: float | None = None

    def good(name: str, detail: str) -> None:
        findings.append(Finding(name, True, detail))

    try:
        dialler = Dialler(reactor, where, keyring, (), None, service, None)
    except ConfigError as problem:
        findings.append(Finding("options", False, str(problem)))
        return Report(ok=False, findings=findings, limits=None, round_trip_seconds=None)
    try:
        # At the second 0: the probes get it as their ts, and expire by no clock of this side.
        factory = SecureIPCClientFactory(reactor, dialler.config, dialler.handler, wall=lambda: 0.0)
        dialling = Deferred.fromCoroutine(dialler.dial(factory))
        connection = await dialling.addTimeout(seconds, reactor)
        try:
            info = None
            if not isinstance(where, int):
                info = connection_file.read(where)
                good("connection file", f"{os.fspath(where)}: port {info.port}, process {info.pid}")
            good("key", f"key id {(connection.key_id or b'').hex()}")
            good("server", f"listens on {connection.peer_address}")
            good("handshake", "both sides have proved that they hold the key")
            limits = connection.peer_limits
            if limits is not None:
                good("limits", ", ".join(f"{name} {value}" for name, value in limits._asdict().items()))
            round_trip = min([await _probe(reactor, connection, seconds) for _ in range(PROBES)])
            good("round trip", f"{round_trip * 1000:.2f} ms, the best of {PROBES}")
            findings.append(_clock(None if info is None else info.started_at))
        finally:
            await connection.close()
    except TimeoutError:
        findings.append(Finding("server", False, f"not connected in {seconds:g} s: it is stopped or blocked"))
    except FileNotFoundError:
        findings.append(Finding("connection file", False, "the server has just removed it: it is stopping"))
    except IPCError as problem:
        findings.append(Finding(_STEPS.get(type(problem), "round trip"), False, str(problem)))
    return Report(
        ok=all(finding.ok for finding in findings),
        findings=findings,
        limits=None if limits is None else limits._asdict(),
        round_trip_seconds=round_trip,
    )


async def _probe(reactor: Any, connection: SecureIPCProtocol, seconds: float) -> float:
    """The time from a probe to its receipt.

    :raises IPCError: what the server did with it is not what a server does.
    """
    began = time.perf_counter()
    try:
        await connection.send(f"check-{secrets.token_hex(16)}", b"").as_deferred().addTimeout(seconds, reactor)
    except TimeoutError:
        raise DeliveryUnknown(
            Category.DELIVERY_UNKNOWN, f"no receipt in {seconds:g} s: the server is stopped or blocked"
        ) from None
    except Rejected as rejected:
        if rejected.category in REFUSED:
            return time.perf_counter() - began
        raise
    raise DeliveryUnknown(Category.MALFORMED, "the server took a message that no server takes: it is none of ours")


def _clock(started_at: int | None) -> Finding:
    if started_at is None:
        return Finding("clock", True, "one host, one clock; without a connection file nothing tells whether it was set")
    ahead = started_at - int(time.time())
    if ahead > 1:
        return Finding(
            "clock",
            False,
            f"the server's clock at its start was {ahead} s ahead of this one: it was set back since, or one of the "
            "two processes has a clock of its own; messages may be rejected as expired or not_yet_valid; set the clock "
            "right, then start the server again",
        )
    return Finding("clock", True, f"the server started {-ahead} s ago")
