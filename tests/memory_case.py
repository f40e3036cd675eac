"""The test case of whatever runs on ``tests.memory_link``: keeps what was logged, and looks what is left."""

from __future__ import annotations

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests import wire_peer as wire
from tests.log_lines import Lines
from tests.memory_link import SECRET, MemoryServer
from tests.raw_channel import DEFAULT_LIMITS

M1 = wire.prefixed(wire.m1(wire.key_id(wire.prk(SECRET), "execution_ipc"), DEFAULT_LIMITS, bytes(range(32))))
M2_BYTES = 100
HOUR = 3_600.0


class LoggedTestCase(SynchronousTestCase):
    """Keeps the package's lines that were logged."""

    def setUp(self) -> None:
        self.lines = Lines()
        globalLogPublisher.addObserver(self.lines)
        self.addCleanup(globalLogPublisher.removeObserver, self.lines)

    def assertNothingLeft(self, server: MemoryServer) -> None:
        """No timer, no table entry."""
        self.assertEqual(server.clock.getDelayedCalls(), [])
        self.assertEqual(server.factory.connections, set())
        self.assertEqual([*server.factory.pending], [])
