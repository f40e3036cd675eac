"""``ipc-twisted``: try the link, make a key, send a message."""

from __future__ import annotations

import argparse
import math
import os
import secrets
import sys
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.task import react
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)

from ipc_twisted import demo
from ipc_twisted.config import DEFAULT_SERVICE
from ipc_twisted.connection_file import default_folder
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.core.key_schedule import MIN_SECRET_BYTES
from ipc_twisted.endpoints import connect
from ipc_twisted.errors import Category, DeliveryUnknown, IPCError, KeyFileError, NotConnected
from ipc_twisted.keys import Keyring, write_new_key_file
from ipc_twisted.protocol import SecureIPCProtocol

OK, FAILED, USAGE = 0, 1, 2
_DEFAULT_TIMEOUT_SECONDS = 30.0


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 accepted (or done), 1 rejected, unknown or failed, 2 wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "keygen":
        sys.exit(_keygen(options.file))
    if options.command == "send":
        if options.port is not None and options.key_file is None:
            options.parser.error("--port needs --key-file: only a connection file can name a generated key")
        options.wait_reply = options.wait_reply or options.reply_kind is not None
        try:
            options.payload_bytes = _payload(options)
        except OSError as problem:
            options.parser.error(f"--payload-file: cannot read {options.payload_file!r}: {problem.strerror}")
    _log_warnings_to_stderr()
    command: Callable[[Any], Coroutine[Any, Any, int]] = (
        _demo if options.command == "demo" else lambda reactor: _send(reactor, options)
    )
    react(lambda reactor: Deferred.fromCoroutine(_exit_with(command(reactor))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ipc-twisted",
        description="A secure local inter-process transport for Twisted, over TCP on 127.0.0.1.",
        epilog="The server is: twistd --nodaemon ipc (see twistd ipc --help).",
    )
    parser.add_argument("--version", action="version", version=f"ipc_twisted {version('ipc_twisted')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo | keygen | send")

    commands.add_parser(
        "demo",
        help="start a server, send through it, attack it",
        description="Start a real twistd ipc child with a generated key, send real input through it both ways, then "
        "play the contract's cases against it. Ends non-zero if any line is not as expected; leaves nothing behind.",
    )

    keygen = commands.add_parser(
        "keygen",
        help="make a key file",
        description="Write a new random key to FILE, which only you can read and which must not exist yet; without "
        "FILE, print a line for a key file.",
    )
    keygen.add_argument("file", nargs="?", metavar="FILE")

    send = commands.add_parser(
        "send",
        help="send one message and say what became of it",
        description="Send one message. Exit status: 0 accepted, 1 rejected, unknown or not sent, 2 wrong usage. The "
        "payload of the reply goes to standard output, everything else to standard error.",
        epilog="Example: ipc-twisted send --kind job.run --payload hello --wait-reply",
    )
    send.set_defaults(parser=send)
    where = send.add_mutually_exclusive_group()
    where.add_argument("--connection-file", metavar="F", help="the server's; default: where twistd ipc writes it")
    where.add_argument("--port", type=_port, metavar="N", help="the server's port, for two users; needs --key-file")
    send.add_argument("--key-file", metavar="F", help="default: the generated key that the connection file names")
    send.add_argument("--service", metavar="NAME", help="default: the connection file's, else execution_ipc")
    send.add_argument("--kind", required=True, metavar="K", help="such as job.run")
    payload = send.add_mutually_exclusive_group()
    payload.add_argument("--payload", metavar="S", help="text, sent as UTF-8; default: 0 bytes")
    payload.add_argument("--payload-file", metavar="F", help="'-' for standard input")
    send.add_argument("--wait-reply", action="store_true", help="wait for one message back and print its payload")
    send.add_argument("--reply-kind", metavar="K", help="its kind, which implies --wait-reply; default: the one sent")
    send.add_argument(
        "--timeout",
        type=_seconds,
        default=_DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="for the connection, again for the outcome, and again for the reply; default %(default)g",
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return seconds


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"must be an int from 1 to 65535, not {text!r}")
    return int(text)


def _keygen(file: str | None) -> int:
    if file is None:
        print(secrets.token_hex(MIN_SECRET_BYTES))
        return OK
    try:
        write_new_key_file(file)
    except KeyFileError as problem:
        print(f"ipc-twisted keygen: {problem}", file=sys.stderr)
        return FAILED
    print(f"wrote a new key to {file}, readable by you alone", file=sys.stderr)
    return OK


async def _demo(reactor: Any) -> int:
    try:
        return OK if await demo.run(reactor, sys.stdout) else FAILED
    except demo.NotStartedError as problem:
        print(f"ipc-twisted demo: {problem}", file=sys.stderr)
        return FAILED


async def _send(reactor: Any, options: argparse.Namespace) -> int:
    reply: Deferred[SecureEnvelope] = Deferred()

    def on_reply(envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> None:
        if not reply.called:
            reply.callback(envelope)

    try:
        connection = await connect(
            reactor,
            options.port or options.connection_file or default_folder() / f"{options.service or DEFAULT_SERVICE}.json",
            Keyring.from_file(options.key_file) if options.key_file else None,
            allowed_kinds=[options.reply_kind or options.kind] if options.wait_reply else [],
            handler=on_reply if options.wait_reply else None,
            service=options.service,
        ).addTimeout(options.timeout, reactor)
        try:
            await _exchange(reactor, connection, reply, options)
        finally:
            await connection.close()
    except IPCError as problem:
        print(f"ipc-twisted send: {problem}", file=sys.stderr)
        return FAILED
    except TimeoutError:
        print(f"ipc-twisted send: not connected in {options.timeout:g} s: nothing was sent", file=sys.stderr)
        return FAILED
    return OK


async def _exchange(
    reactor: Any, connection: SecureIPCProtocol, reply: Deferred[SecureEnvelope], options: argparse.Namespace
) -> None:
    delivery = connection.send(options.kind, options.payload_bytes, reply_to="ipc-twisted send")
    try:
        await delivery.as_deferred().addTimeout(options.timeout, reactor)
    except TimeoutError:
        raise DeliveryUnknown(
            Category.DELIVERY_UNKNOWN, f"no outcome in {options.timeout:g} s; the message may have been handed over"
        ) from None
    print("accepted", file=sys.stderr)
    if not options.wait_reply:
        return

    def ended(category: Category) -> None:
        if not reply.called:
            reply.errback(NotConnected(category, "the connection ended before a reply came"))

    connection.wait_closed().addCallback(ended)
    try:
        envelope = await reply.addTimeout(options.timeout, reactor)
    except TimeoutError:
        kind = options.reply_kind or options.kind
        why = f"the message was accepted, but no reply of kind {kind!r} came in {options.timeout:g} s"
        raise NotConnected(Category.CLOSED, why) from None
    sys.stdout.buffer.write(envelope.payload_bytes + (b"\n" if sys.stdout.isatty() else b""))
    sys.stdout.buffer.flush()


def _payload(options: argparse.Namespace) -> bytes:
    """:raises OSError: the file cannot be read."""
    if options.payload_file is None:
        return os.fsencode(options.payload or "")  # the bytes that were typed, UTF-8 or not
    if options.payload_file == "-":
        return sys.stdin.buffer.read()
    return Path(options.payload_file).read_bytes()


async def _exit_with(command: Coroutine[Any, Any, int]) -> None:
    sys.exit(await command)


def _log_warnings_to_stderr() -> None:
    observer = FilteringLogObserver(
        textFileLogObserver(sys.stderr), [LogLevelFilterPredicate(defaultLogLevel=LogLevel.warn)]
    )
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)


if __name__ == "__main__":
    main(sys.argv[1:])
