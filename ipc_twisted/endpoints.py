"""Where is listened and dialled: 127.0.0.1 and nothing else."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IListeningPort

from ipc_twisted.config import LOOPBACK, MAX_PORT, ExecutionIPCConfig
from ipc_twisted.dialling import Dialler, KeySource
from ipc_twisted.errors import BindForbidden, Category
from ipc_twisted.factory import ACCEPTS_PER_TURN, SecureIPCClientFactory, SecureIPCFactory
from ipc_twisted.protocol import Handler, SecureIPCProtocol

# \Z and ASCII digits, nothing around: a second "interface=" would win, and "٣" is a digit to int().
_DESCRIPTION = re.compile(r"tcp:(0|[1-9][0-9]{0,4}):interface=127\.0\.0\.1\Z")
BACKLOG = 512
"""Connections that the kernel keeps for us to accept: with Twisted's 50, clients that come at once wait for a second,
which is when the kernel tries again."""

DEFAULT_DESCRIPTION = f"tcp:0:interface={LOOPBACK}"


def check_description(description: object) -> int:
    """Enforce the one form of an endpoint description, ``tcp:PORT:interface=127.0.0.1``.

    :returns: the port; 0 for any free one.
    :raises BindForbidden: for anything else.
    """
    match = _DESCRIPTION.match(description) if isinstance(description, str) else None
    if match is None or int(match[1]) > MAX_PORT:
        raise BindForbidden(
            Category.BIND_FORBIDDEN,
            f"the endpoint must be tcp:PORT:interface=127.0.0.1 with a port from 0 to {MAX_PORT}, not {description!r}",
        )
    return int(match[1])


def listen(reactor: Any, factory: SecureIPCFactory, description: str = DEFAULT_DESCRIPTION) -> Deferred[IListeningPort]:
    """Listen on 127.0.0.1.

    :raises BindForbidden: on the Deferred: another form of description, or a socket that is not where it was asked to
        be.
    :raises CannotListenError: on the Deferred: Twisted's, such as for a port that is taken.
    """

    async def bind() -> IListeningPort:
        number = check_description(description)
        endpoint = TCP4ServerEndpoint(reactor, number, backlog=BACKLOG, interface=LOOPBACK)
        port: IListeningPort = await endpoint.listen(factory)
        host = port.getHost()
        family = getattr(port, "addressFamily", socket.AF_INET)
        if getattr(host, "host", None) != LOOPBACK or family != socket.AF_INET:
            await maybeDeferred(port.stopListening)
            raise BindForbidden(Category.BIND_FORBIDDEN, f"the socket was bound to {host!r} instead of {LOOPBACK}")
        cast(Any, port).numberAccepts = ACCEPTS_PER_TURN
        factory.ports.append(port)
        return port

    return Deferred.fromCoroutine(bind())


def connect(
    reactor: Any,
    where: str | os.PathLike[str] | int,
    keyring: KeySource | None = None,
    *,
    allowed_kinds: Iterable[str] = (),
    handler: Handler | None = None,
    service: str | None = None,
    config: ExecutionIPCConfig | None = None,
) -> Deferred[SecureIPCProtocol]:
    """Connect to a server on this host, and fire once both sides have proved that they hold the key.

    :param reactor: Twisted's; it is never imported here.
    :param where: the server's connection file, or its port.
    :param keyring: the shared secret, or the key file it is in; None: the generated key that the connection file
        names.
    :param allowed_kinds: the kinds that ``handler`` takes; default: those of ``config``. Without a handler nothing is
        taken.
    :param service: the link's name; default: the connection file's, else ``execution_ipc``.
    :param config: limits of this side; the defaults if left out.
    :raises ConnectionFileError: on the Deferred, as all of them: the connection file is not to be trusted.
    :raises NotConnected: nobody listens there.
    :raises HandshakeError: the server did not answer, or did not prove itself; the message says what it can be.
    :raises KeyFileError: the key cannot be used.
    :raises ConfigError: a wrong argument.
    """

    async def dial() -> SecureIPCProtocol:
        dialler = Dialler(reactor, where, keyring, allowed_kinds, handler, service, config)
        return await dialler.dial(SecureIPCClientFactory(reactor, dialler.config, dialler.handler))

    return Deferred.fromCoroutine(dial())
