"""``ipc-twisted``: try the link, make a key, send a message, look whether the link is well."""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import secrets
import sys
import textwrap
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.task import LoopingCall, react
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)

from ipc_twisted import bench, demo
from ipc_twisted.check import check
from ipc_twisted.config import DEFAULT_SERVICE, MAX_PORT
from ipc_twisted.connection_file import default_folder
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.core.key_schedule import MIN_SECRET_BYTES
from ipc_twisted.endpoints import connect
from ipc_twisted.errors import Category, DeliveryUnknown, IPCError, KeyFileError, NotConnected
from ipc_twisted.keys import Keyring, write_new_key_file
from ipc_twisted.peer_watch import held
from ipc_twisted.protocol import SecureIPCProtocol

OK, FAILED, USAGE = 0, 1, 2
_DEFAULT_TIMEOUT_SECONDS = 30.0
_CHECK_TIMEOUT_SECONDS = 10.0
_LARGE_BYTES = 1024 * 1024  # from here on a terminal sees how far a payload is
_BAR_SECONDS = 0.1
_BAR_CELLS = 30
_EXAMPLES = "examples:"


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 accepted, done or well, 1 rejected, unknown or failed, 2 wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "keygen":
        sys.exit(_keygen(options.file))
    if options.command in ("send", "check") and options.port is not None and options.key_file is None:
        options.parser.error("--port needs --key-file: only a connection file can name a generated key")
    if options.command == "send":
        options.wait_reply = options.wait_reply or options.reply_kind is not None
        try:
            options.payload_bytes = _payload(options)
        except OSError as problem:
            options.parser.error(f"--payload-file: cannot read {options.payload_file!r}: {problem.strerror}")
    _log_warnings_to_stderr()
    command = _COMMANDS[options.command]
    react(lambda reactor: Deferred.fromCoroutine(_exit_with(command(reactor, options))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ipc-twisted",
        description="A secure local inter-process transport for Twisted, over TCP on 127.0.0.1.",
        epilog="The server is: twistd --nodaemon ipc (see twistd ipc --help).",
    )
    parser.add_argument("--version", action="version", version=f"ipc_twisted {version('ipc_twisted')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo | keygen | send | check | bench")

    commands.add_parser(
        "demo",
        help="start a server, send through it, attack it",
        description="Start a real twistd ipc child with a generated key, send real input through it both ways, then "
        "play the contract's cases against it. Ends non-zero if any line is not as expected; leaves nothing behind.",
        **_examples("ipc-twisted demo"),
    )

    keygen = commands.add_parser(
        "keygen",
        help="make a key file",
        description="Write a new random key to FILE, which only you can read and which must not exist yet; without "
        "FILE, print a line for a key file.",
        **_examples(
            "ipc-twisted keygen execution.key",
            "(umask 077; (ipc-twisted keygen; cat execution.key) > new.key)    # a new key before the old ones",
        ),
    )
    keygen.add_argument("file", nargs="?", metavar="FILE")

    send = commands.add_parser(
        "send",
        help="send one message and say what became of it",
        description="Send one message. Exit status: 0 accepted, 1 rejected, unknown or not sent, 2 wrong usage. The "
        "payload of the reply goes to standard output, everything else to standard error.",
        **_examples(
            "ipc-twisted send --kind job.run --payload hello --wait-reply",
            "ipc-twisted send --port 40001 --key-file web.key --kind job.run --payload-file - < picture.png",
            "ipc-twisted send --kind job.run --payload hello --reply-kind job.done --json",
        ),
    )
    _add_place(send)
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
    send.add_argument("--json", action="store_true", help="print what became of it, and the reply, as one JSON object")

    check = commands.add_parser(
        "check",
        help="say whether the link is well, and what to do if not",
        description="Look whether the connection file is good, the key is the server's, the server lives and proves "
        "itself, what its limits are, how long a round trip takes, and whether the clock was set back. Sends nothing "
        "that the server takes as work. Exit status: 0 all is well, 1 it is not, 2 wrong usage.",
        **_examples("ipc-twisted check", "ipc-twisted check --port 40001 --key-file web.key --json"),
    )
    _add_place(check)
    check.add_argument(
        "--timeout",
        type=_seconds,
        default=_CHECK_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="for the connection, and again for each probe; default %(default)g",
    )
    check.add_argument("--json", action="store_true", help="print the findings as one JSON object")

    bench_ = commands.add_parser(
        "bench",
        help="say how fast the link is on this machine",
        description="Start a real twistd ipc child and measure: messages a second one way by size, with every check "
        "and receipt, and the time of a round trip. Takes some ten seconds; leaves nothing behind.",
        **_examples("ipc-twisted bench", "ipc-twisted bench --scale 0.1"),
    )
    bench_.add_argument(
        "--scale", type=_scale, default=1.0, metavar="X", help="send X times as many messages; default %(default)g"
    )
    return parser


class _Lines(argparse.RawDescriptionHelpFormatter):
    """Examples stay on lines of their own; all else is filled as usual."""

    def add_text(self, text: str | None) -> None:
        if text is not None and not text.startswith(_EXAMPLES):
            text = textwrap.fill(text, self._width)
        super().add_text(text)


def _examples(*commands: str) -> dict[str, Any]:
    """Arguments of a parser whose help ends in these."""
    return {"epilog": "\n  ".join((_EXAMPLES, *commands)), "formatter_class": _Lines}


def _add_place(command: argparse.ArgumentParser) -> None:
    """The options that say which server."""
    command.set_defaults(parser=command)
    where = command.add_mutually_exclusive_group()
    where.add_argument("--connection-file", metavar="F", help="the server's; default: where twistd ipc writes it")
    where.add_argument("--port", type=_port, metavar="N", help="the server's port, for two users; needs --key-file")
    command.add_argument("--key-file", metavar="F", help="default: the generated key that the connection file names")
    command.add_argument("--service", metavar="NAME", help="default: the connection file's, else execution_ipc")


def _seconds(text: str) -> float:
    return _positive(text, "a number of seconds")


def _scale(text: str) -> float:
    return _positive(text, "a number")


def _positive(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be {what} above 0, not {text!r}")
    return value


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_PORT):
        raise argparse.ArgumentTypeError(f"must be an int from 1 to {MAX_PORT}, not {text!r}")
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


async def _demo(reactor: Any, _options: argparse.Namespace) -> int:
    try:
        return OK if await demo.run(reactor, sys.stdout) else FAILED
    except demo.NotStartedError as problem:
        print(f"ipc-twisted demo: {problem}", file=sys.stderr)
        return FAILED


async def _bench(reactor: Any, options: argparse.Namespace) -> int:
    try:
        await bench.run(reactor, sys.stdout, options.scale)
    except demo.NotStartedError as problem:
        print(f"ipc-twisted bench: {problem}", file=sys.stderr)
        return FAILED
    return OK


def _place(options: argparse.Namespace) -> int | str | Path:
    """The port or connection file that the options name."""
    if options.port is not None:
        return int(options.port)
    return options.connection_file or default_folder() / f"{options.service or DEFAULT_SERVICE}.json"


async def _check(reactor: Any, options: argparse.Namespace) -> int:
    report = await check(reactor, _place(options), options.key_file, options.service, options.timeout)
    if options.json:
        print(json.dumps(msgspec.to_builtins(report)))
    else:
        for finding in report.findings:
            print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check}: {finding.detail}")
        print("the link is well" if report.ok else "the link is not well: see the line that says FAIL")
    return OK if report.ok else FAILED


async def _send(reactor: Any, options: argparse.Namespace) -> int:
    reply: Deferred[SecureEnvelope] = Deferred()
    said: dict[str, Any] = {"accepted": False, "category": None, "message": None, "reply": None}

    def on_reply(envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> None:
        if not reply.called:
            reply.callback(envelope)

    try:
        connection = await connect(
            reactor,
            _place(options),
            Keyring.from_file(options.key_file) if options.key_file else None,
            allowed_kinds=[options.reply_kind or options.kind] if options.wait_reply else [],
            handler=on_reply if options.wait_reply else None,
            service=options.service,
        ).addTimeout(options.timeout, reactor)
        try:
            await _exchange(reactor, connection, reply, options, said)
        finally:
            await connection.close()
    except IPCError as problem:
        said |= {"category": str(problem.category), "message": str(problem)}
    except TimeoutError:
        said |= {"message": f"not connected in {options.timeout:g} s: nothing was sent"}
    if options.json:
        print(json.dumps(said))
    elif said["message"] is not None:
        print(f"ipc-twisted send: {said['message']}", file=sys.stderr)
    return OK if said["message"] is None else FAILED


async def _exchange(
    reactor: Any,
    connection: SecureIPCProtocol,
    reply: Deferred[SecureEnvelope],
    options: argparse.Namespace,
    said: dict[str, Any],
) -> None:
    delivery = connection.send(options.kind, options.payload_bytes, reply_to="ipc-twisted send")
    try:
        with _progress(reactor, connection, len(options.payload_bytes)):
            await delivery.as_deferred().addTimeout(options.timeout, reactor)
    except TimeoutError:
        raise DeliveryUnknown(
            Category.DELIVERY_UNKNOWN, f"no outcome in {options.timeout:g} s; the message may have been handed over"
        ) from None
    said["accepted"] = True
    if not options.json:
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
        said["message"] = f"the message was accepted, but no reply of kind {kind!r} came in {options.timeout:g} s"
        return
    if options.json:
        fields = {name: getattr(envelope, name) for name in ("kind", "trace_id", "reply_to", "target", "headers")}
        payload = base64.b64encode(envelope.payload_bytes).decode()
        said["reply"] = {**fields, "payload_base64": payload}
        return
    sys.stdout.buffer.write(envelope.payload_bytes + (b"\n" if sys.stdout.isatty() else b""))
    sys.stdout.buffer.flush()


@contextmanager
def _progress(reactor: Any, connection: SecureIPCProtocol, size: int) -> Iterator[None]:
    """A bar on standard error while a large payload goes out, if a person looks on: how much the kernel has taken."""
    if size < _LARGE_BYTES or not sys.stderr.isatty():
        yield
        return

    def draw() -> None:
        outbox, left = connection.outbox, held(connection.transport)
        share = 1 - min(1, left / size) if outbox.in_flight or not outbox.unsettled else 0
        cells = int(share * _BAR_CELLS)
        bar = "#" * cells + "." * (_BAR_CELLS - cells)
        print(f"\r[{bar}] {share:4.0%} of {size / 1024**2:.1f} MiB", end="", file=sys.stderr, flush=True)

    drawing = LoopingCall(draw)
    drawing.clock = reactor
    drawing.start(_BAR_SECONDS)
    try:
        yield
        draw()
    finally:
        drawing.stop()
        print(file=sys.stderr)


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


_COMMANDS: dict[str, Callable[[Any, argparse.Namespace], Coroutine[Any, Any, int]]] = {
    "demo": _demo,
    "bench": _bench,
    "send": _send,
    "check": _check,
}


if __name__ == "__main__":
    main(sys.argv[1:])
