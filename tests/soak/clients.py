"""A process with many client services that do nothing but stay connected, and say when they are.

``python -m tests.soak.clients OPTIONS``, as a process of :class:`tests.soak.common.Program`.
"""

from __future__ import annotations

import json
import sys
import time

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from ipc_twisted import ExecutionIPCClientService


class Options(msgspec.Struct, kw_only=True):
    """Of the command line."""

    where: str
    key_file: str
    clients: int


def tell(event: str, number: int) -> None:
    """When it happened, in unix seconds: the time of a file is compared with it."""
    sys.stdout.write(json.dumps({"event": event, "number": number, "at": time.time()}) + "\n")
    sys.stdout.flush()


async def _stay(number: int, service: ExecutionIPCClientService) -> None:
    while True:
        try:
            connection = await service.whenConnected()
        except CancelledError:
            return
        tell("connected", number)
        await connection.wait_closed()
        tell("closed", number)


class Commands(LineOnlyReceiver):
    """There are none; the end of them is the end of the process."""

    def __init__(self, services: list[ExecutionIPCClientService]) -> None:
        self._services = services

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        async def stop() -> None:
            for stopping in [service.stopService() for service in self._services]:
                await stopping
            reactor.stop()

        Deferred.fromCoroutine(stop())


def main() -> None:
    options = msgspec.json.decode(sys.argv[1].encode(), type=Options)
    services = [ExecutionIPCClientService(reactor, options.where, options.key_file) for _ in range(options.clients)]
    StandardIO(Commands(services))

    def start() -> None:
        for number, service in enumerate(services):
            service.startService()
            Deferred.fromCoroutine(_stay(number, service)).addErrback(lambda f: f.printTraceback(sys.stderr))

    reactor.callWhenRunning(start)
    reactor.run()


if __name__ == "__main__":
    main()
