"""Every category of the design's section 7 comes about over real sockets, with the right end for the connection.

``CATEGORIES`` is the whole list, written out once more: a category that has no test fails, and so does a renamed one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint

from ipc_twisted import (
    BindForbidden,
    Category,
    ConfigError,
    ConnectionFileError,
    DeliveryUnknown,
    ExecutionIPCConfig,
    HandshakeError,
    KeyFileError,
    Keyring,
    NotConnected,
    Rejected,
    SecureIPCProtocol,
    SendBufferFull,
    connect,
    listen,
)
from ipc_twisted.factory import SecureIPCClientFactory
from tests import wire_peer as wire
from tests.memory_link import NOW, SECRET, config
from tests.raw_channel import PeerClosed
from tests.raw_peer import HOST, Listener, Peer, ServerPeer
from tests.serving import Server, in_thread, serving, within
from tests.twistd_child import TwistdChild

CATEGORIES = {
    # handshake
    "handshake_timeout": "test_handshake_timeout",
    "handshake_malformed": "test_what_is_no_handshake",
    "version_unsupported": "test_what_is_no_handshake",
    "key_unknown": "test_key_unknown",
    "authentication_failed": "test_authentication_failed_at_the_server, test_authentication_failed_at_the_client",
    "early_data": "test_early_data_at_the_server, test_early_data_at_the_client",
    "self_connect": "test_self_connect",
    "handshake_refused": "test_handshake_refused",
    "evicted": "test_evicted",
    # record
    "malformed": "test_a_record_at_fault",
    "payload_too_large": "test_a_record_at_fault",
    "signature_missing": "test_a_record_at_fault",
    "signature_invalid": "test_a_record_at_fault",
    "sequence_gap": "test_a_record_at_fault",
    "replayed": "test_a_record_at_fault, test_an_envelope_at_fault",
    "credit_exceeded": "test_credit_exceeded",
    "frame_timeout": "test_frame_timeout",
    # envelope
    "kind_not_allowed": "test_an_envelope_at_fault",
    "expired": "test_an_envelope_at_fault",
    "not_yet_valid": "test_an_envelope_at_fault",
    "outside_replay_window": "test_outside_replay_window",
    "replay_cache_full": "test_replay_cache_full",
    "shutting_down": "test_shutting_down",
    # connection
    "closed": "test_closed",
    "too_many_connections": "test_too_many_connections",
    "clock_stepped": "test_clock_stepped",
    "write_stalled": "later: the next phase",
    "receipt_timeout": "later: the next phase",
    "connection_lost": "test_connection_lost",
    # local
    "bind_forbidden": "test_bind_forbidden",
    "config_invalid": "test_config_invalid",
    "key_invalid": "test_key_invalid",
    "key_file_insecure": "test_key_file_insecure",
    "connection_file_invalid": "test_connection_file_invalid",
    "not_connected": "test_not_connected",
    "send_buffer_full": "test_send_buffer_full",
    "delivery_unknown": "test_delivery_unknown",
}


def test_the_table_is_whole() -> None:
    assert [*CATEGORIES] == [str(category) for category in Category]
    for names in CATEGORIES.values():
        if not names.startswith("later: "):
            for name in names.split(", "):
                assert callable(globals()[name])


# --- handshake: no answer, only a line in the log ---------------------------------------------------------------------


def silence(server: Server, said: bytes = b"") -> int:
    """How many bytes a stranger gets in answer before it is dropped; for threads only."""
    with server.open() as peer:
        peer.send_raw(said)
        return len(peer.wait_eof())


@pytest.mark.parametrize("said", [b"", b"\0\0\0\x40IPC"], ids=["silent", "half a message"])
@pytest_twisted.ensureDeferred
async def test_handshake_timeout(said: bytes) -> None:
    async with serving({"handshake_timeout_seconds": 0.05}) as server:
        assert await in_thread(silence, server, said) == 0
        assert server.counters["handshake", "handshake_timeout"] == 1


@pytest.mark.parametrize(
    ("said", "category"),
    [
        (b"GET ", "handshake_malformed"),
        (b"\0\0\0\x41", "handshake_malformed"),
        (b"\0\0\0\x40IPCX", "handshake_malformed"),
        (b"\0\0\0\x40IPCT\1\2", "handshake_malformed"),
        (b"\0\0\0\x40IPCT\1\1\0\1", "handshake_malformed"),
        (b"\0\0\0\x40IPCT\0", "version_unsupported"),
        (b"\0\0\0\x40IPCT\2", "version_unsupported"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_handshake(said: bytes, category: str) -> None:
    """Each is refused with its last byte, without waiting for more."""
    async with serving() as server:
        assert await in_thread(silence, server, said) == 0
        assert server.counters["handshake", category] == 1
        await in_thread(server.assert_serves)


@pytest.mark.parametrize(
    ("secret", "service"),
    [
        pytest.param(bytes(range(32)), "execution_ipc", id="another key"),
        pytest.param(SECRET + b"\0", "execution_ipc", id="the key and a zero byte"),
        pytest.param(SECRET, "other", id="another service"),
        pytest.param(SECRET, "Execution_ipc", id="in other case"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_key_unknown(secret: bytes, service: str) -> None:
    def stranger() -> bytes:
        with server.open() as peer:
            peer.send_m1(secret, service)
            return peer.wait_eof()

    async with serving() as server:
        assert await in_thread(stranger) == b""
        assert server.counters["handshake", "key_unknown"] == 1
        from twisted.internet import reactor

        with pytest.raises(HandshakeError) as raised:
            await within(connect(reactor, server.port, Keyring([secret]), service=service))
        assert raised.value.category == Category.HANDSHAKE_REFUSED
        assert "another key" in str(raised.value)
        assert "another service name" in str(raised.value)


@pytest_twisted.ensureDeferred
async def test_authentication_failed_at_the_server() -> None:
    def stranger() -> bytes:
        with server.open() as peer:
            peer.send_m1(SECRET)
            peer.read_m2()
            peer.send_raw(wire.prefixed(wire.m3(bytes(32))))
            return peer.wait_eof()

    async with serving() as server:
        assert await in_thread(stranger) == b""
        assert server.counters["handshake", "authentication_failed"] == 1


@pytest_twisted.ensureDeferred
async def test_early_data_at_the_server() -> None:
    m1 = wire.prefixed(wire.m1(wire.key_id(wire.prk(SECRET), "execution_ipc"), (1, 1, 1, 1), bytes(32)))
    async with serving() as server:
        assert await in_thread(silence, server, m1 + b"!") == 0
        assert server.counters["handshake", "early_data"] == 1


@pytest_twisted.ensureDeferred
async def test_evicted() -> None:
    def strangers() -> bytes:
        with server.open() as first:
            first.send_m1(SECRET)
            first.read_m2()
            with server.peer() as second:
                nothing = first.wait_eof()
                server.assert_serves(second)
                return nothing

    async with serving({"max_pending_handshakes": 1}) as server:
        assert await in_thread(strangers) == b""
        assert server.counters["handshake", "evicted"] == 1


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as listener:
        yield listener


async def refused(listener: Listener, serve: Callable[[ServerPeer], None]) -> tuple[HandshakeError, bytes]:
    """What a client of the package says of a server, and what that server got beyond M1."""
    from twisted.internet import reactor

    def play() -> bytes:
        with listener.accept_raw() as peer:
            peer.read_m1()
            serve(peer)
            return peer.wait_eof()

    playing = in_thread(play)
    with pytest.raises(HandshakeError) as raised:
        await within(connect(reactor, listener.port, Keyring([SECRET])))
    return raised.value, await playing


@pytest_twisted.ensureDeferred
async def test_authentication_failed_at_the_client(listener: Listener) -> None:
    error, got = await refused(listener, lambda peer: peer.send_m2(bytes(range(32))))
    assert error.category == Category.AUTHENTICATION_FAILED
    assert "another program has taken the port" in str(error)
    assert got == b""


@pytest_twisted.ensureDeferred
async def test_early_data_at_the_client(listener: Listener) -> None:
    def serve(peer: ServerPeer) -> None:
        peer.send_raw(wire.prefixed(wire.m2(wire.m2_head(bytes(8), (1, 1, 1, 1), bytes(32)), bytes(32))) + b"!")

    error, got = await refused(listener, serve)
    assert error.category == Category.EARLY_DATA
    assert got == b""


@pytest_twisted.ensureDeferred
async def test_handshake_refused(listener: Listener) -> None:
    error, got = await refused(listener, lambda peer: peer.end_writing())
    assert error.category == Category.HANDSHAKE_REFUSED
    assert got == b""


@pytest.mark.attack(15)
@pytest_twisted.ensureDeferred
async def test_self_connect() -> None:
    """What the kernel may do where an ephemeral port is dialled that nobody listens on, here provoked."""
    from twisted.internet import reactor

    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    factory = SecureIPCClientFactory(reactor, config(), lambda *_: None)
    factory.aim(port, Keyring([SECRET]), "execution_ipc")
    endpoint = TCP4ClientEndpoint(reactor, HOST, port, bindAddress=(HOST, port))
    protocol = cast(SecureIPCProtocol, await within(endpoint.connect(factory)))
    with pytest.raises(HandshakeError) as raised:
        await within(protocol.when_authenticated())
    assert raised.value.category == Category.SELF_CONNECT
    assert await within(protocol.wait_closed()) == Category.SELF_CONNECT


# --- record: CLOSE, and the connection is over ------------------------------------------------------------------------


def ended(server: Server, send: Callable[[Peer], object], **options: Any) -> dict[str, Any]:
    """The CLOSE of a connection on which ``send`` was at fault; for threads only."""
    with server.peer() as honest:
        with server.peer(**options) as peer:
            send(peer)
            close = peer.read_until_close()
            with suppress(OSError):  # it waits no more than a second for it
                peer.end_writing()
            peer.wait_eof()
        server.assert_serves(honest)
    return close


def _frame(peer: Peer, **overrides: Any) -> bytes:
    return peer.envelope_frame("job.run", b"", **overrides)[1]


def _twice(peer: Peer) -> None:
    peer.send_raw(2 * _frame(peer))


@pytest.mark.parametrize(
    ("send", "category", "cause"),
    [
        (lambda peer: peer.send_raw(bytes(4)), "malformed", 0),
        (lambda peer: peer.send_raw(_frame(peer, header=b"\xc1")), "malformed", 0),
        (lambda peer: peer.send_receipt(through=5), "malformed", 0),
        (lambda peer: peer.send_raw(b"\xff" * 4), "payload_too_large", 0),
        (lambda peer: peer.send_raw(_frame(peer, sig=bytes(32))), "signature_missing", 0),
        (lambda peer: peer.send_raw(_frame(peer, sig=b"\1" * 32)), "signature_invalid", 0),
        (lambda peer: peer.send_raw(_frame(peer, seq=1)), "sequence_gap", 0),
        (_twice, "replayed", 1),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_record_at_fault(send: Callable[[Peer], object], category: str, cause: int) -> None:
    async with serving() as server:
        close = await in_thread(ended, server, send)
        assert (close["category"], close["cause"]) == (category, cause)
        assert server.counters["ended", category] == 1
        assert len(server.received) == 2 + (cause > 0)


@pytest.mark.attack(6)
@pytest.mark.parametrize("limit", ["messages", "bytes"])
@pytest_twisted.ensureDeferred
async def test_credit_exceeded(limit: str) -> None:
    def send(peer: Peer) -> None:
        peer.send_raw(b"".join(peer.envelope_frame("job.run", bytes(payload))[1] for _ in range(3)))

    payload = 10 if limit == "messages" else 40_000
    limits = {"max_inflight": 2} if limit == "messages" else {"max_inflight_bytes": 40_000 + 65_582}
    async with serving(limits, max_payload_bytes=40_000) as server:
        server.handler = lambda envelope, _: Deferred() if envelope.payload_bytes else None
        close = await in_thread(ended, server, send)
        assert (close["category"], close["cause"], close["through"]) == ("credit_exceeded", 2, 1)
        assert server.counters["ended", "credit_exceeded"] == 1


@pytest.mark.attack(6)
@pytest_twisted.ensureDeferred
async def test_frame_timeout() -> None:
    async with serving({"frame_timeout_seconds": 0.05}) as server:
        close = await in_thread(ended, server, lambda peer: peer.send_raw(_frame(peer)[:-1]))
        assert (close["category"], close["cause"]) == ("frame_timeout", 0)
        assert server.counters["ended", "frame_timeout"] == 1


# --- envelope: RECEIPT, and the connection goes on --------------------------------------------------------------------


def told(server: Server, *messages: dict[str, Any]) -> list[str]:
    """What becomes of each message, all on one connection that goes on; for threads only."""
    with server.peer() as peer:
        outcomes = [peer.receipt_for(peer.send_envelope(**{"kind": "job.run", **message})) for message in messages]
        peer.send_close()
        assert peer.read_until_close()["category"] == "closed"
        return outcomes


@pytest.mark.attack(25, 26)
@pytest.mark.parametrize(
    ("message", "category"),
    [
        ({"kind": "job.drop"}, "kind_not_allowed"),
        ({"ts": NOW - 31}, "expired"),
        ({"ts": NOW + 31}, "not_yet_valid"),
        ({"nonce": "used"}, "replayed"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_envelope_at_fault(message: dict[str, Any], category: str) -> None:
    edges: list[dict[str, Any]] = [{"ts": NOW - 30, "nonce": "used"}, {"ts": NOW + 30}]
    async with serving(wall=lambda: NOW + 0.9) as server:
        outcomes = await in_thread(told, server, *edges, {"ts": NOW, **message}, {"ts": NOW})
        assert outcomes == ["accepted", "accepted", category, "accepted"]
        assert server.counters["rejected", category] == 1
        assert len(server.received) == 3
        await in_thread(server.assert_serves)


@pytest.mark.attack(28)
@pytest_twisted.ensureDeferred
async def test_outside_replay_window() -> None:
    async with serving(auth={"nonce_cache_size": 2}, wall=lambda: NOW) as server:
        outcomes = await in_thread(told, server, *({"ts": NOW - age} for age in (10, 9, 0, 10)))
        assert outcomes == ["accepted"] * 3 + ["outside_replay_window"]
        assert server.counters["rejected", "outside_replay_window"] == 1


@pytest.mark.attack(28)
@pytest_twisted.ensureDeferred
async def test_replay_cache_full() -> None:
    async with serving(auth={"nonce_cache_size": 2}, wall=lambda: NOW) as server:
        outcomes = await in_thread(told, server, *({"ts": NOW - age} for age in (1, 0, 0, 1)))
        assert outcomes == ["accepted"] * 2 + ["replay_cache_full"] * 2
        assert len(server.received) == 2


# --- connection -------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_closed() -> None:
    async with serving() as server:
        connection = await server.connect()
        assert await within(connection.close()) == Category.CLOSED
        await in_thread(server.assert_serves)
        assert server.counters["ended", "closed"] == 2


@pytest_twisted.ensureDeferred
async def test_too_many_connections() -> None:
    def play() -> str:
        with server.peer() as first:
            with server.peer() as second:
                category: str = second.read_until_close()["category"]
            assert first.receipt_for(first.send_envelope("job.run")) == "accepted"
            return category

    async with serving({"max_connections": 1}) as server:
        assert await in_thread(play) == "too_many_connections"
        assert server.counters["ended", "too_many_connections"] == 1


@pytest.mark.attack(27, 28)
@pytest_twisted.ensureDeferred
async def test_clock_stepped() -> None:
    def play() -> tuple[list[str], bool]:
        with server.peer() as one, server.peer() as other:
            for peer, ts in ((other, NOW - 9), (one, NOW - 5), (one, NOW)):  # so that both are in
                assert peer.receipt_for(peer.send_envelope("job.run", ts=ts)) == "accepted"
            clock[0] -= 3_600
            other.send_envelope("job.run", ts=clock[0])
            categories = [peer.read_until_close()["category"] for peer in (one, other)]
            with server.peer() as after:
                assert after.receipt_for(after.send_envelope("job.run", ts=clock[0])) == "accepted"
                return categories, after.server.instance != one.server.instance

    clock = [NOW]
    async with serving(auth={"nonce_cache_size": 1}, wall=lambda: clock[0]) as server:
        assert await in_thread(play) == (["clock_stepped"] * 2, True)
        assert server.counters["ended", "clock_stepped"] == 2


@pytest.mark.attack(13)
@pytest_twisted.ensureDeferred
async def test_connection_lost() -> None:
    def play() -> None:
        for end in (Peer.abort, Peer.end_writing):
            with server.peer() as peer:
                peer.receipt_for(peer.send_envelope("job.run"))
                end(peer)
                if end is Peer.end_writing:
                    peer.wait_eof()

    async with serving() as server:
        await in_thread(play)
        await in_thread(server.assert_serves)
        assert server.counters["ended", "connection_lost"] == 2


def test_shutting_down() -> None:
    """At SIGTERM: who is connected is told, and no new one gets in."""
    with TwistdChild() as child, child.peer() as peer:
        seq = peer.send_envelope("job.run", target="keep")
        assert peer.receipt_for(seq) == "accepted"
        child.process.terminate()
        close = peer.read_until_close()
        assert (close["category"], close["through"], close["cause"]) == ("shutting_down", 0, None)
        peer.send_close()
        assert peer.wait_eof() == b""
        child.wait()
        with pytest.raises(ConnectionRefusedError):
            Peer.open(child.port)


# --- local ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("description", ["tcp:0", "tcp:0:interface=0.0.0.0", "tcp:0:interface=127.0.0.1:interface=::"])
@pytest_twisted.ensureDeferred
async def test_bind_forbidden(description: str) -> None:
    from twisted.internet import reactor

    async with serving() as server:
        with pytest.raises(BindForbidden) as raised:
            await within(listen(reactor, server.factory, description))
        assert raised.value.category == Category.BIND_FORBIDDEN


def test_config_invalid() -> None:
    with pytest.raises(ConfigError) as raised:
        ExecutionIPCConfig.from_mapping({"allowed_kinds": [], "bind_host": "0.0.0.0"})
    assert raised.value.category == Category.CONFIG_INVALID
    assert any("bind_forbidden" in problem for problem in raised.value.problems)


def test_key_invalid(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    with pytest.raises(KeyFileError) as raised:
        Keyring.from_file(path)
    assert raised.value.category == Category.KEY_INVALID


def test_key_file_insecure(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(SECRET.hex())
    path.chmod(0o640)
    with pytest.raises(KeyFileError) as raised:
        Keyring.from_file(path)
    assert raised.value.category == Category.KEY_FILE_INSECURE


@pytest.mark.attack(36)
@pytest.mark.parametrize("content", [None, b"", b"{", b"{}", b'{"protocol": 1}', b"\xff" * 5_000])
@pytest_twisted.ensureDeferred
async def test_connection_file_invalid(tmp_path: Path, content: bytes | None) -> None:
    from twisted.internet import reactor

    path = tmp_path / "link.json"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(ConnectionFileError) as raised:
        await within(connect(reactor, path))
    assert raised.value.category == Category.CONNECTION_FILE_INVALID
    assert "link.json" in str(raised.value)


@pytest_twisted.ensureDeferred
async def test_not_connected() -> None:
    from twisted.internet import reactor

    async with serving() as server:
        port = server.port
        connection = await server.connect()
        connection.close()
        with pytest.raises(NotConnected) as raised:
            connection.send("job.run", b"")
        assert raised.value.category == Category.NOT_CONNECTED
        await within(connection.wait_closed())
    with pytest.raises(NotConnected) as raised:
        await within(connect(reactor, port, Keyring([SECRET])))
    assert raised.value.category == Category.NOT_CONNECTED


@pytest.mark.attack(7)
@pytest_twisted.ensureDeferred
async def test_send_buffer_full() -> None:
    async with serving({"max_inflight": 1}, max_payload_bytes=10_000) as server:
        server.handler = lambda _envelope, _connection: Deferred()
        limits = config({"send_buffer_bytes": 100_000}, max_payload_bytes=10_000)
        connection = await server.connect(config=limits, handler=lambda _envelope, _connection: None)
        accepted = connection.send("job.run", b"").as_deferred()
        await within(accepted)
        waiting = [connection.send("job.run", bytes(10_000)).as_deferred() for _ in range(9)]
        with pytest.raises(SendBufferFull) as raised:
            connection.send("job.run", bytes(10_000))
        assert raised.value.category == Category.SEND_BUFFER_FULL
        await within(connection.close())
        for delivery in waiting:
            with pytest.raises(Rejected):
                await within(delivery)


@pytest.mark.attack(13)
@pytest_twisted.ensureDeferred
async def test_delivery_unknown(listener: Listener) -> None:
    from twisted.internet import reactor

    def play() -> None:
        with listener.accept(SECRET) as peer:
            peer.read_envelope()
            peer.abort()

    playing = in_thread(play)
    connection = await within(connect(reactor, listener.port, Keyring([SECRET])))
    delivery = connection.send("job.run", b"").as_deferred()
    with pytest.raises(DeliveryUnknown) as raised:
        await within(delivery)
    assert raised.value.category == Category.DELIVERY_UNKNOWN
    assert await within(connection.wait_closed()) == Category.CONNECTION_LOST
    await playing


def test_a_raw_peer_notices_an_end(listener: Listener) -> None:
    """What the tests above rely on: nothing that is missing is taken for an answer."""
    with socket.create_connection((HOST, listener.port)) as sock, listener.accept_raw() as peer:
        sock.close()
        with pytest.raises(PeerClosed):
            peer.read_m1()
