"""What the package gives to the tests of others. Runs under trial too."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ipc_twisted import Category, DeliveryUnknown, ExecutionIPCConfig, HandshakeError, Keyring, Rejected
from ipc_twisted.testing import NOW, LinkedPair


def pair(handler: Any = None, **more: Any) -> LinkedPair:
    return LinkedPair(ExecutionIPCConfig.from_mapping({"allowed_kinds": ["job.run", "job.done"]}), handler, **more)


class LinkedPairTests(SynchronousTestCase):
    """:class:`LinkedPair`."""

    def test_both_ends_send_and_learn_the_outcome(self) -> None:
        link = pair()
        there, back = link.client.send("job.run", b"there"), link.server.send("job.done", b"back")
        self.assertFalse(there.done() or back.done())
        link.advance()
        self.successResultOf(there.as_deferred())
        self.successResultOf(back.as_deferred())
        self.assertEqual([envelope.payload_bytes for envelope in link.server_received], [b"there"])
        self.assertEqual([envelope.payload_bytes for envelope in link.client_received], [b"back"])
        self.assertEqual(link.server_received[0].ts, NOW)

    def test_handlers_are_driven(self) -> None:
        waiting: Deferred[None] = Deferred()

        async def handler(envelope: Any, connection: Any) -> None:
            await waiting
            connection.send("job.done", envelope.payload_bytes.upper())

        answers: list[bytes] = []
        link = pair(handler, client_handler=lambda envelope, _: answers.append(envelope.payload_bytes))
        link.client.send("job.run", b"x")
        link.advance()
        self.assertEqual((link.server_factory.handlers, answers), (1, []))
        waiting.callback(None)
        link.advance()
        self.assertEqual((link.server_factory.handlers, answers), (0, [b"X"]))

    def test_what_the_other_side_does_not_allow_is_rejected(self) -> None:
        delivery = (link := pair()).client.send("job.stop", b"")
        link.advance()
        self.assertEqual(self.failureResultOf(delivery.as_deferred(), Rejected).value.category, "kind_not_allowed")

    def test_a_forged_record_ends_the_connection_and_is_not_handed_over(self) -> None:
        link = pair()
        link.client.send("job.run", b"x")
        link.advance()
        link.to_server.forge()
        link.advance()
        self.assertEqual(link.server.category, Category.SIGNATURE_INVALID)
        self.assertEqual(len(link.server_received), 1)

    def test_a_replayed_record_ends_the_connection_and_is_not_handed_over(self) -> None:
        link = pair()
        link.client.send("job.run", b"x")
        link.advance()
        record = link.to_server.records[0]
        link.to_server.replay(0)
        link.advance()
        self.assertEqual(link.server.category, Category.REPLAYED)
        link.connect()
        link.to_server.inject(record)
        link.advance()
        self.assertEqual(link.server.category, Category.SIGNATURE_INVALID)
        self.assertEqual(len(link.server_received), 1)

    def test_what_is_delayed_arrives_later_and_in_order(self) -> None:
        link = pair()
        link.to_server.delay = 3.0
        link.client.send("job.run", b"1")
        link.advance()
        link.to_server.delay = 0.0
        link.client.send("job.run", b"2")
        link.advance(2.9)
        self.assertEqual(link.server_received, [])
        link.advance(0.1)
        self.assertEqual([envelope.payload_bytes for envelope in link.server_received], [b"1", b"2"])

    def test_in_order_whatever_the_floats_round_to(self) -> None:
        """0.05 + (0.21 - 0.05) is less than 0.21."""
        link = pair()
        link.to_server.delay = 0.21
        link.client.send("job.run", b"1")
        link.advance()
        link.advance(0.05)
        link.to_server.delay = 0.0
        link.client.send("job.run", b"2")
        link.advance(0.5)
        self.assertEqual([envelope.payload_bytes for envelope in link.server_received], [b"1", b"2"])

    def test_time_goes_by_step_by_step(self) -> None:
        """A handler's timer, and then the way back, fall into one call."""

        def handler(_envelope: Any, connection: Any) -> None:
            link.clock.callLater(1, connection.send, "job.done", b"")

        link = pair(handler)
        link.to_client.delay = 1.0
        link.client.send("job.run", b"")
        link.advance(2)
        self.assertEqual(len(link.client_received), 1)

    def test_a_cut_leaves_the_outcome_unknown(self) -> None:
        link = pair()
        link.to_client.delay = 1.0
        delivery = link.client.send("job.run", b"")
        link.advance()
        link.cut()
        self.failureResultOf(delivery.as_deferred(), DeliveryUnknown)
        self.assertEqual(link.server.category, Category.CONNECTION_LOST)
        link.advance(2)
        link.connect()
        again = link.client.send("job.run", b"")
        link.advance()
        self.successResultOf(again.as_deferred())
        self.assertEqual(len(link.server_received), 2)

    def test_a_close_and_an_abort_reach_the_other_end(self) -> None:
        link = pair()
        closed = link.client.close()
        link.advance(1)
        self.assertEqual((self.successResultOf(closed), link.server.category), ("closed", "closed"))
        self.assertEqual(link.server_factory.transports | link.client_factory.transports, set())
        link.connect()
        link.client.transport.abortConnection()
        link.advance()
        self.assertEqual(link.server.category, Category.CONNECTION_LOST)
        self.assertEqual(link.clock.getDelayedCalls(), [])

    def test_ends_that_do_not_come_together_say_so(self) -> None:
        link = pair()
        link.server_factory.use_keyring(Keyring([bytes(range(7, 39))]))
        with self.assertRaises(HandshakeError):
            link.connect()
