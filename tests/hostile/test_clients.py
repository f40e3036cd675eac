"""A real client is the victim: what it dials, what it is told, and what it does after that. Attacks 15 and 28."""

from __future__ import annotations

import socket

import pytest
import pytest_twisted

from ipc_twisted import Keyring, NotConnected, connect
from ipc_twisted.client_service import RETRY_MAX_SECONDS, _retry_delay
from tests.memory_link import SECRET
from tests.raw_peer import HOST
from tests.serving import within


@pytest.mark.attack(15)
@pytest_twisted.ensureDeferred
async def test_a_dead_port_is_never_taken_for_a_server_however_often_it_is_dialled() -> None:
    """The kernel joins a socket to itself where it picks, as the source, the very port that is dialled."""
    from twisted.internet import reactor

    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    for _ in range(200):
        with pytest.raises(NotConnected):
            await within(connect(reactor, port, Keyring([SECRET])))


@pytest.mark.attack(15)
def test_a_client_comes_back_later_and_later_and_never_at_the_same_time_as_all_others() -> None:
    delays = [[_retry_delay(attempt) for attempt in range(40)] for _ in range(50)]
    assert max(max(one) for one in delays) <= RETRY_MAX_SECONDS
    assert min(one[20] for one in delays) >= 1.0
    for attempt in range(40):
        assert len({one[attempt] for one in delays}) == len(delays)
