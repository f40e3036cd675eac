"""The built-in handlers on a clock. Runs under trial too."""

from __future__ import annotations

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ipc_twisted.handlers import echo, log
from tests.log_lines import Lines
from tests.memory_link import MemoryServer
from tests.raw_channel import DEFAULT_LIMITS


class HandlersTests(SynchronousTestCase):
    """``echo`` and ``log``."""

    def setUp(self) -> None:
        self.lines = Lines()
        globalLogPublisher.addObserver(self.lines)
        self.addCleanup(globalLogPublisher.removeObserver, self.lines)

    def test_echo_answers_with_the_same_and_the_reply_to_as_target(self) -> None:
        server = MemoryServer(handler=echo)
        link = server.connect()
        link.send(b"hello", trace_id="t", reply_to="me", target="you", headers={"a": "b"})
        server.turn()
        answer = link.peer.read_envelope()
        names = ("kind", "payload", "trace_id", "target", "headers", "reply_to")
        self.assertEqual([answer[name] for name in names], ["job.run", b"hello", "t", "me", {"a": "b"}, None])

    def test_a_peer_that_does_not_take_the_echo_is_told_of_in_the_log(self) -> None:
        """Its message was accepted all the same."""
        server = MemoryServer(handler=echo)
        link = server.connect(limits=(10, *DEFAULT_LIMITS[1:]))
        self.assertEqual(link.peer.receipt_for(link.send(b"x" * 11, trace_id="t")), "accepted")
        (line,) = [line for line in self.lines if "no echo" in line]
        self.assertIn("payload_too_large", line)
        self.assertIn("trace_id='t'", line)

    def test_an_echo_to_somebody_who_has_gone_is_nothing(self) -> None:
        server = MemoryServer({"send_buffer_bytes": 80_000}, handler=echo, max_payload_bytes=10_000)
        link = server.connect(limits=(*DEFAULT_LIMITS[:2], 0, DEFAULT_LIMITS[3]))
        for _ in range(20):
            link.send(bytes(10_000))
        server.turn()
        link.peer.abort()
        server.turn()
        self.assertEqual(server.factory.counters["handler", "failed"], 0)
        self.assertEqual(server.factory.handlers, 0)

    def test_log_writes_a_line_without_the_payload(self) -> None:
        server = MemoryServer(handler=log)
        server.connect().send(b"secret stuff", trace_id="t\n")
        (line,) = [line for line in self.lines if "received kind" in line]
        self.assertIn("trace_id='t\\n' target=None payload_bytes=12", line)
        self.assertNotIn("secret stuff", line)
