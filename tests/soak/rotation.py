"""Keys are changed under traffic, one side at a time: no message is rejected or unknown.

Each round: the new key goes first into the server's file (SIGHUP), the senders are moved, the old key is dropped
(SIGHUP). A raw peer and the last sender stay behind: their connections end with ``key_unknown``, and the sender, moved
late, has lost nothing.
"""

from __future__ import annotations

import signal
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from tests.raw_peer import Peer
from tests.soak.common import MIB, Receiver, Report, Sender, all_settled, lines, new_key, poll, settle_accounts
from tests.soak.common import write_key_file as write


def run(report: Report, *, senders: int = 3, rounds: int = 5, messages: int = 20_000) -> None:
    """Rotate so many times.

    :param messages: of each sender in each round.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        receiver = stack.enter_context(Receiver(folder))
        key = receiver.key.hex()
        first = folder / "senders-0.key"
        write(first, key)
        config = {"max_payload_bytes": 65_536, "limits": {"send_buffer_bytes": MIB}}
        more = {"key_file": str(first), "config": config}
        group = [stack.enter_context(Sender(receiver, number, **more)) for number in range(senders)]
        *quick, late = group
        for sender in group:
            sender.wait_for("connected")
        categories: list[str] = []
        for number in range(rounds):
            handed_over = number * senders * messages

            def traffic(share: float, done: int = handed_over) -> None:
                enough = done + int(share * messages * len(quick))  # the late one may be held up
                poll("traffic goes on", lambda: len(lines(receiver.log, "h")) >= enough, every=0.02)

            with Peer.connect(receiver.child.port, bytes.fromhex(key)) as peer:
                for sender in group:
                    sender.tell("send", count=messages)
                new = new_key()
                traffic(0.1)
                _reload(receiver, new, key)
                own = folder / f"senders-{number + 1}.key"
                write(own, new)
                for at, sender in enumerate(quick, start=1):
                    traffic(0.1 + 0.5 * at / len(quick))
                    sender.tell("move", key_file=str(own))
                for sender in quick:
                    sender.wait_for("connected", times=number + 2)
                traffic(0.8)
                _reload(receiver, new)
                categories.append(peer.read_until_close()["category"])
                late.wait_for("closed", category="key_unknown", times=number + 1)
            late.tell("move", key_file=str(own))
            late.wait_for("connected", times=number + 2)
            for sender in group:
                sender.wait_for("sent", count=(number + 1) * messages)
            all_settled(group)
            key = new
        ended = [Counter(event["category"] for event in sender.events("closed")) for sender in group]
        for sender in group:
            sender.stop()
        finished = receiver.end(signal.SIGTERM)
        ledger = settle_accounts(report, group, receiver)
        report.holds("the receiver ended by the signal", finished.code == -signal.SIGTERM, finished.code)
        report.holds("no message is rejected or unknown", set(ledger.counted()) == {"accepted"}, ledger.counted())
        report.holds("all were sent", len(ledger.outcomes) == senders * rounds * messages, len(ledger.outcomes))
        told = set(categories)
        report.holds("a peer under a dropped key is told key_unknown", told == {"key_unknown"}, categories)
        report.holds("so is a sender that was not moved", ended[-1]["key_unknown"] == rounds, dict(ended[-1]))
        for sender, categories_of in zip(quick, ended, strict=False):
            own_end = {"closed": rounds} == categories_of
            report.holds(f"{sender.name} left each old key in order", own_end, dict(categories_of))


def _reload(receiver: Receiver, *keys: str) -> None:
    """Write the server's key file, and have it read."""
    before = receiver.child.log.count("the keys were changed")
    write(receiver.key_file, *keys)
    receiver.child.signal(signal.SIGHUP)
    receiver.child.wait_for("the keys were changed", times=before + 1)
