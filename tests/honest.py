"""What an honest client gets. No ``assert`` statements: as a helper it is not rewritten by pytest, and must hold under
``python -O`` too."""

from __future__ import annotations

from typing import Any

from tests.raw_peer import Peer


def exchange(newcomer: Peer, *others: Peer, **fields: Any) -> None:
    """All of them send and get a receipt; then the newcomer closes in an orderly way.

    :param fields: of the envelopes.
    :raises AssertionError: one of them was not served.
    """
    for peer in (newcomer, *others):
        outcome = peer.receipt_for(peer.send_envelope("job.run", **fields))
        if outcome != "accepted":
            raise AssertionError(f"an honest client's message ended {outcome}")
    newcomer.send_close()
    category = newcomer.read_until_close()["category"]
    rest = newcomer.wait_eof()
    if category != "closed" or rest or newcomer.reset:
        raise AssertionError(f"an honest client's close ended {category}, {rest!r}, reset: {newcomer.reset}")
