"""A process with one client service that sends what it is told to, and writes down every send and every outcome.

``python -m tests.soak.sender OPTIONS``, as a process of :class:`tests.soak.common.Sender`: commands come as lines of
JSON, events go out as such. Its log has ``s TRACE_ID`` for what was queued and ``o TRACE_ID OUTCOME SECONDS`` for what
became of it, on the machine's monotonic clock.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.internet.task import deferLater
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from ipc_twisted import ExecutionIPCClientService, ExecutionIPCConfig, SecureIPCProtocol, SendBufferFull
from tests.soak.common import KIND, REFUSED_KIND

_TURN = 500
"""Messages between two looks at the reactor."""

Special = tuple[int, str]
"""Which of the messages to come gets a target of its own, and which."""


def tell(event: str, **more: Any) -> None:
    """Say something to who started this."""
    sys.stdout.write(json.dumps({"event": event, **more}) + "\n")
    sys.stdout.flush()


class SendingOptions(msgspec.Struct, kw_only=True):
    """Of the command line.

    :ivar name: the trace ids are ``NAME-0``, ``NAME-1`` …
    :ivar waits: when the buffer is full, wait for ``drained()``; else try again soon.
    :ivar refused_every: every so many get a kind that is not allowed; 0: none.
    """

    name: str
    where: str
    key_file: str
    log: str
    payload_bytes: int = 100
    target: str | None = None
    waits: bool = True
    refused_every: int = 0
    config: dict[str, Any] = {}


class Sending:
    """The service, what may be sent, and what has no outcome."""

    def __init__(self, options: SendingOptions) -> None:
        self._options = options
        self._payload = bytes(options.payload_bytes)
        config = ExecutionIPCConfig.from_mapping({"allowed_kinds": [KIND], **options.config})
        self.service = ExecutionIPCClientService(reactor, options.where, options.key_file, config=config)
        self._log = open(options.log, "w", encoding="utf-8", buffering=1 << 16)  # noqa: SIM115  # as long as this lives
        self._pending: dict[int, None] = {}  # in the order of their numbers
        self._specials: dict[int, str] = {}
        self._barriers: list[tuple[int, int]] = []
        self._next = self._allowed = 0
        self._until = 0.0
        self._more: Deferred[None] | None = None
        self.full = 0
        self.most_buffered = 0
        self.stopping = False

    # Commands

    def send(self, count: int = 0, seconds: float = 0.0, specials: tuple[Special, ...] = ()) -> None:
        """So many more, or as many as can be in so many seconds."""
        for at, target in specials:
            self._specials[self._allowed + at] = target
        self._allowed += count
        self._until = time.monotonic() + seconds
        more, self._more = self._more, None
        if more is not None:
            more.callback(None)

    def barrier(self, number: int) -> None:
        self._barriers.append((number, self._next))
        self._look_at_barriers()

    def move(self, key_file: str) -> None:
        """To another key."""
        self.service.use_keyring(key_file)

    def state(self) -> None:
        tell("state", **self._figures())

    async def stop(self) -> None:
        self.stopping = True
        await self.service.stopService()
        self._log.close()
        tell("stopped", pending=len(self._pending), **self._figures())
        reactor.stop()

    def _figures(self) -> dict[str, Any]:
        state = self.service.state
        return {
            "queued": self._next,
            "full": self.full,
            "most_buffered": self.most_buffered,
            "buffered": state.buffered,
            "last_error": None if state.last_error is None else str(state.last_error.category),
            "statistics": msgspec.to_builtins(self.service.statistics()),
        }

    # How it goes

    async def run(self) -> None:
        """Send what may be sent, until it is stopped."""
        self.service.startService()
        self._announce(await self.service.whenConnected())
        while not self.stopping:
            if self._next < self._allowed or time.monotonic() < self._until:
                await self._send_one()
            else:
                tell("sent", count=self._next)
                self._more = Deferred()
                await self._more

    def _announce(self, connection: SecureIPCProtocol) -> None:
        tell("connected", at=time.monotonic())
        connection.wait_closed().addCallback(self._closed)

    def _closed(self, category: object) -> None:
        tell("closed", category=str(category), at=time.monotonic())
        if not self.stopping:
            self.service.whenConnected().addCallbacks(self._announce, lambda failure: failure.trap(CancelledError))

    async def _send_one(self) -> None:
        number, options = self._next, self._options
        trace_id = f"{options.name}-{number}"
        refused = bool(options.refused_every) and number % options.refused_every == options.refused_every - 1
        target = self._specials.get(number, options.target)
        kind = REFUSED_KIND if refused and number not in self._specials else KIND
        try:
            delivery = self.service.send(kind, self._payload, trace_id=trace_id, target=target)
        except SendBufferFull:
            self.full += 1
            self.most_buffered = max(self.most_buffered, self.service.state.buffered)
            await (self.service.drained() if options.waits else deferLater(reactor, 0.01))
            return
        self._next += 1
        self._pending[number] = None
        self._log.write(f"s {trace_id}\n")
        delivery.add_done_callback(partial(self._ended, number))
        if number % _TURN == 0:
            self.most_buffered = max(self.most_buffered, self.service.state.buffered)
            await deferLater(reactor, 0)

    def _ended(self, number: int, delivery: Any) -> None:
        error = delivery.exception()
        outcome = "accepted" if error is None else str(error.category)
        self._log.write(f"o {delivery.trace_id} {outcome} {time.monotonic():.6f}\n")
        self._pending.pop(number, None)
        if number in self._specials:
            tell("special", number=number, target=self._specials.pop(number), outcome=outcome)
        if self._barriers:
            self._look_at_barriers()

    def _look_at_barriers(self) -> None:
        oldest = next(iter(self._pending), self._next)
        for number, before in self._barriers:
            if oldest >= before:
                tell("barrier", number=number, at=time.monotonic())
        self._barriers = [barrier for barrier in self._barriers if oldest < barrier[1]]


class Commands(LineOnlyReceiver):
    """Calls the methods of :class:`Sending` by name; the end of the commands is the end of the process."""

    delimiter = b"\n"

    def __init__(self, sending: Sending) -> None:
        self._sending = sending

    def lineReceived(self, line: bytes) -> None:  # noqa: N802  # Twisted's name
        command = json.loads(line)
        result = getattr(self._sending, command.pop("do"))(**command)
        if result is not None:
            Deferred.fromCoroutine(result).addErrback(_fatal)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reactor.running and not self._sending.stopping:
            reactor.stop()


def _fatal(failure: Failure) -> None:
    failure.printTraceback(sys.stderr)
    reactor.stop()


def main() -> None:
    sending = Sending(msgspec.json.decode(sys.argv[1].encode(), type=SendingOptions))
    StandardIO(Commands(sending))
    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(sending.run()).addErrback(_fatal))
    reactor.run()


if __name__ == "__main__":
    main()
