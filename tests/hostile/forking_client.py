"""A client of the package that forks while it is connected; ``python -m tests.hostile.forking_client FILE``.

The forked half tries everything that could say something to the server, then ends. Then the other half sends on. Each
prints what it was told: ``child: ...`` and ``parent: ...``.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from ipc_twisted import IPCError, connect

MESSAGES = 20


def forked(connection: Any) -> int:
    """Send, write whatever there is to write, close; how many messages were taken.

    It leaves the transport's own methods alone: a fork shares the reactor's epoll with its parent, whatever the
    protocol does.
    """
    said = 0
    try:
        connection.send("job.run", b"from the fork", target="keep")
        said += 1
    except IPCError as problem:
        print("child:", problem.category, flush=True)
    connection.flush()
    connection.close()
    for _ in range(10):
        connection.transport.doWrite()
    return said


async def main(reactor: Any, connection_file: str) -> None:
    """Send, fork, send."""
    connection = await connect(reactor, connection_file)
    for number in range(MESSAGES):
        await connection.send("job.run", b"before %d" % number, target="keep")
    queued = [connection.send("job.run", b"queued %d" % number, target="keep") for number in range(MESSAGES)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        os._exit(forked(connection))
    _, status = os.waitpid(pid, 0)
    print("child said", os.waitstatus_to_exitcode(status), flush=True)
    for delivery in queued:
        await delivery
    for number in range(MESSAGES):
        await connection.send("job.run", b"behind %d" % number, target="keep")
    print("parent: accepted", connection.is_open, flush=True)
    await connection.close()


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, sys.argv[1])))
