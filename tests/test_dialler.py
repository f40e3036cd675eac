"""The dialling side, up to the end of the handshake. On a clock, without a socket.

Runs under pytest and under ``python -m twisted.trial tests.test_dialler``.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError
from twisted.internet.testing import MemoryReactorClock

from ipc_twisted import Category, HandshakeError, Keyring, SecureIPCProtocol, connect
from ipc_twisted.dialling import Dialler
from tests.memory_case import LoggedTestCase
from tests.memory_link import NOW, SECRET, SERVER, MemoryClient


class DiallerTests(LoggedTestCase):
    """The client's side on a clock."""

    def connected(self) -> MemoryClient:
        client = MemoryClient()
        waiting = client.protocol.when_authenticated()
        client.peer.handshake(SECRET)
        self.assertIs(self.successResultOf(waiting), client.protocol)
        self.assertIs(self.successResultOf(client.protocol.when_authenticated()), client.protocol)
        return client

    def failed(self, provoke: Callable[[MemoryClient], object]) -> HandshakeError:
        client = MemoryClient()
        waiting = client.protocol.when_authenticated()
        provoke(client)
        error = self.failureResultOf(waiting, HandshakeError).value
        self.failureResultOf(client.protocol.when_authenticated(), HandshakeError)
        client.clock.advance(0)
        self.assertEqual(client.clock.getDelayedCalls(), [])
        self.assertTrue(client.transport.lost)
        self.assertIsInstance(error, HandshakeError)
        return error  # type: ignore[no-any-return]

    def test_it_says_nothing_but_its_first_message_to_a_server_that_does_not_prove_itself(self) -> None:
        def other_key(client: MemoryClient) -> None:
            client.peer.read_m1()
            client.peer.send_m2(bytes(32))
            self.assertEqual(client.transport.take(), b"")

        self.assertEqual(self.failed(other_key).category, Category.AUTHENTICATION_FAILED)

    def test_it_dials_the_address_and_no_name_that_a_resolver_could_lead_elsewhere(self) -> None:
        reactor = MemoryReactorClock()
        waiting = connect(reactor, SERVER[1], Keyring([SECRET]))
        ((host, port, *_),) = reactor.tcpClients
        self.assertEqual((host, port), SERVER)
        waiting.cancel()
        self.failureResultOf(waiting)

    def test_without_a_handler_it_takes_no_kind_at_all(self) -> None:
        dialler = Dialler(MemoryReactorClock(), SERVER[1], Keyring([SECRET]), (), None, None, None)
        self.assertEqual(dialler.config.allowed_kinds, ())

    def test_where_it_was_led_to_another_port_than_it_dialled_no_proof_convinces_it(self) -> None:
        client = MemoryClient(peer=(SERVER[0], SERVER[1] + 1))
        waiting = client.protocol.when_authenticated()
        client.peer.read_m1()
        client.peer.send_m2(SECRET)
        error = self.failureResultOf(waiting, HandshakeError).value
        self.assertEqual(error.category, Category.AUTHENTICATION_FAILED)
        self.assertEqual(client.transport.take(), b"")

    def test_what_comes_too_early_ends_it(self) -> None:
        def chatty(client: MemoryClient) -> None:
            client.peer.read_m1()
            send, client.peer.send_raw = client.peer.send_raw, lambda data: send(data + b"!")  # type: ignore[method-assign]
            client.peer.send_m2(SECRET)

        self.assertEqual(self.failed(chatty).category, Category.EARLY_DATA)

    def test_an_end_in_place_of_an_answer(self) -> None:
        error = self.failed(lambda client: client.peer.end_writing())
        self.assertEqual(error.category, Category.HANDSHAKE_REFUSED)
        self.assertIn("another key", str(error))
        self.assertIn("another service name", str(error))

    def test_a_reset_in_place_of_an_answer(self) -> None:
        self.assertEqual(self.failed(lambda client: client.peer.abort()).category, Category.HANDSHAKE_REFUSED)

    def test_what_is_no_server_of_ours(self) -> None:
        for answer, category in (
            (b"HTTP/1.1 400 Bad Request", Category.HANDSHAKE_MALFORMED),
            (bytes.fromhex("00000060495043540202000000"), Category.VERSION_UNSUPPORTED),
        ):
            with self.subTest(answer=answer):

                def answers(client: MemoryClient, answer: bytes = answer) -> None:
                    client.peer.send_raw(answer)

                self.assertEqual(self.failed(answers).category, category)

    def test_who_no_longer_waits_leaves_no_connection_behind(self) -> None:
        client = MemoryClient()
        waiting = client.protocol.when_authenticated()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        client.clock.advance(0)
        self.assertTrue(client.transport.lost)
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_who_is_told_may_end_the_wait_of_another(self) -> None:
        client = MemoryClient()
        first, other = client.protocol.when_authenticated(), client.protocol.when_authenticated()
        first.addCallback(lambda _: other.cancel())
        client.peer.handshake(SECRET)
        self.failureResultOf(other, CancelledError)
        self.assertTrue(client.protocol.is_open)

    def test_so_may_who_is_told_that_there_is_no_connection(self) -> None:
        client = MemoryClient()
        first, other = client.protocol.when_authenticated(), client.protocol.when_authenticated()
        first.addErrback(lambda _: other.cancel())
        client.peer.send_raw(bytes(4))
        self.failureResultOf(other, CancelledError)

    def test_it_may_send_in_the_same_write_as_its_proof(self) -> None:
        def send(protocol: SecureIPCProtocol) -> None:
            protocol.send("job.run", b"first")

        client = MemoryClient()
        client.protocol.when_authenticated().addCallback(send)
        client.peer.handshake(SECRET)
        self.assertEqual(client.peer.read_envelope()["payload"], b"first")

    def test_it_may_close_as_soon_as_it_is_authenticated(self) -> None:
        client = MemoryClient()
        client.protocol.when_authenticated().addCallback(lambda protocol: protocol.end(Category.CLOSED))
        client.peer.handshake(SECRET)
        self.assertEqual(client.peer.read_until_close()["category"], "closed")
        client.peer.send_close()
        client.clock.advance(0)
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_a_kind_that_it_does_not_take_is_logged_and_rejected(self) -> None:
        client = self.connected()
        seq = client.peer.send_envelope("job.other", ts=NOW)
        self.assertEqual(client.peer.receipt_for(seq), "kind_not_allowed")
        self.assertEqual(client.received, [])
        self.assertIn("kind_not_allowed kind='job.other'", self.lines[-1])
