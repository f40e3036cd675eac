"""The package against ``tests/vectors``: frozen cases that another implementation made from the design alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ipc_twisted.core.codec import Close, Malformed, Receipt, deserialize
from ipc_twisted.core.connection import State
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.core.flow import ReceiveCredit, SendCredit
from ipc_twisted.core.framing import Framer
from ipc_twisted.core.handshake import ClientHandshake, Endpoint, Limits, ServerHandshake
from ipc_twisted.core.key_schedule import Prk
from ipc_twisted.core.outbox import Delivery, Outbox
from ipc_twisted.core.replay import MemoryReplayGuard
from ipc_twisted.core.signing import MacKey
from ipc_twisted.core.verifier import Fault, Rejection, Verifier
from ipc_twisted.errors import Category
from tests.core_pair import INSTANCE, NOW, Side
from tests.wire_peer import prefixed

Case = dict[str, Any]
FOLDER = Path(__file__).parent / "vectors"


def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def cases(*names: str) -> Any:
    found = [case for name in names for case in load(name)["cases"]]
    return pytest.mark.parametrize("case", found, ids=[case["id"] for case in found])


KEYS = {name: MacKey(bytes.fromhex(key)) for name, key in load("records_accept")["keys"].items()}


def test_no_case_was_lost() -> None:
    counts = {name: len(load(name)["cases"]) for name in ("handshake_accept", "handshake_reject")}
    counts |= {name: len(load(name)["cases"]) for name in ("records_accept", "records_reject")}
    floors = {"handshake_accept": 11, "handshake_reject": 83, "records_accept": 51, "records_reject": 203}
    assert all(counts[name] >= floor for name, floor in floors.items()), counts


# Handshakes


def host_port(text: str) -> tuple[str, int]:
    host, port = text.split(":")
    return host, int(port)


def endpoint(case: Case) -> Endpoint:
    return Endpoint(*host_port(case["server"]), *host_port(case["client"]))


def prks(case: Case, secrets: list[str]) -> dict[bytes, Prk]:
    return {prk.key_id(case["service"]): prk for prk in (Prk(bytes.fromhex(secret)) for secret in secrets)}


@cases("handshake_accept")
def test_a_handshake_is_the_same_byte_for_byte(case: Case) -> None:
    (client_prk,) = prks(case, [case["client_secret"]]).values()
    limits_c, limits_s = Limits(**case["limits_c"]), Limits(**case["limits_s"])
    instance, nonce_c, nonce_s = (bytes.fromhex(case[name]) for name in ("instance", "nonce_c", "nonce_s"))
    client = ClientHandshake(client_prk, case["service"], limits_c, endpoint(case), nonce_c)
    server = ServerHandshake(
        prks(case, case["server_secrets"]), case["service"], limits_s, instance, endpoint(case), nonce_s
    )
    m1, m2, m3 = (prefixed(bytes.fromhex(case[name])) for name in ("m1", "m2", "m3"))
    record = bytes.fromhex(case["first_record"] or "")
    assert client.start() == m1
    assert server.receive(m1) == (m2, b"")
    assert client.receive(m2) == (m3, b"")
    assert server.receive(m3 + record) == (b"", record)
    assert client.outcome is not None
    assert server.outcome is not None
    assert client.outcome.key_id.hex() == server.outcome.key_id.hex() == case["key_id"]
    assert (client.outcome.instance, server.outcome.limits, client.outcome.limits) == (instance, limits_c, limits_s)
    for key, name in ((client.outcome.send_key, "k_c2s"), (server.outcome.send_key, "k_s2c")):
        assert key.sign(b"any message") == MacKey(bytes.fromhex(case[name])).sign(b"any message")


@cases("handshake_reject")
def test_a_handshake_is_refused_with_the_category_and_no_answer(case: Case) -> None:
    """Through the connection, so that also what it does with the end of a stream is judged."""
    own = case["own"]
    limits, nonce = Limits(**own["limits"]), bytes.fromhex(own["nonce"])
    known = prks(case, case["secrets"])
    half: ServerHandshake | ClientHandshake
    if case["role"] == "server":
        instance = bytes.fromhex(own["instance"])
        half = ServerHandshake(known, case["service"], limits, instance, endpoint(case), nonce)
    else:
        half = ClientHandshake(next(iter(known.values())), case["service"], limits, endpoint(case), nonce)
    side = Side(half, limits)
    for step in case["steps"]:
        if "send" in step:
            assert side.output().hex() == step["send"]
        elif "receive" in step:
            side.connection.receive_data(bytes.fromhex(step["receive"]), NOW)
        else:
            side.connection.receive_eof()
    assert (side.state, str(side.connection.category)) == (State.DEAD, case["category"])
    assert (side.output(), side.authenticated) == (b"", 0)


# Records


class Receiver:
    """The side that judges a record, put into the state of the case."""

    def __init__(self, case: Case) -> None:
        state, sent = case["receiver"], case["sender"]
        key = KEYS["k_" + case["direction"]]
        self.now = state["now"]
        self.guard = MemoryReplayGuard(state["nonce_cache_size"], state["ttl_seconds"], INSTANCE)
        for nonce, ts in state["accepted_before"]:
            assert self.guard.admit(nonce, ts, self.now) is None
        assert self.guard.floor == state["floor"]
        self.credit = ReceiveCredit(state["credit"]["messages"], state["credit"]["bytes"])
        self.credit.used_messages, self.credit.used_bytes = state["used"]["messages"], state["used"]["bytes"]
        self.framer = Framer(state["max_payload_bytes"], key.new)
        self.verifier = Verifier(key, frozenset(state["allowed_kinds"]), state["ttl_seconds"], self.guard, self.credit)
        self.verifier.expected = state["expected_seq"]
        self.verifier.shutting_down = state["shutting_down"]
        self.send_credit = SendCredit(sent["credit"]["messages"], sent["credit"]["bytes"])
        self.outbox, self.written = outbox(sent["sent"]), len(sent["sent"])
        self.outbox.take_receipt(sent["through"], [], self.written)

    def take(self, segments: list[bytes]) -> list[SecureEnvelope | Rejection | Receipt | Close]:
        """What the connection does with segments, without the connection.

        :raises Fault: with its category.
        """
        taken: list[SecureEnvelope | Rejection | Receipt | Close] = []

        def hand_over(envelope: SecureEnvelope, _size: int) -> bool:
            taken.append(envelope)
            return True

        def take_control(record: Receipt | Close) -> None:
            if isinstance(record, Receipt) and not self.send_credit.raise_to(record.messages, record.bytes):
                raise Fault(Category.MALFORMED)
            try:
                self.outbox.take_receipt(record.through, record.rejected, self.written)
            except Malformed:
                raise Fault(Category.MALFORMED) from None
            taken.append(record)

        for segment in segments:
            self.verifier.verify(self.framer.feed(segment), self.now, hand_over, taken.append, take_control)
            if self.framer.fault is not None:
                raise Fault(self.framer.fault)
        return taken


def outbox(sent: str) -> Outbox:
    """What a side has that wrote these records: E is an envelope, anything else is none."""
    box = Outbox(10**9, Counter(), lambda _: None)
    credit = SendCredit(10**9, 10**12)
    for seq, letter in enumerate(sent):
        if letter == "E":
            box.add(Delivery(NOW, "job.run", None, b"", b"", 0))
            box.write(KEYS["k_c2s"], seq, credit, 1, 0, 0.0)
    return box


def ways(frame: bytes) -> list[list[bytes]]:
    """One write, and two that cut it where the path of records in parts begins and goes on."""
    cuts = [[frame], [frame[:1], frame[1:]], [frame[:47], frame[47:]]]
    return [[segment for segment in cut if segment] for cut in cuts]


@cases("records_accept")
def test_a_record_is_taken(case: Case) -> None:
    frame, expect = bytes.fromhex(case["frame"]), case["expect"]
    for segments in ways(frame):
        receiver = Receiver(case)
        (record,) = receiver.take(segments)
        assert fields(record) == {k: v for k, v in expect.items() if k not in ("type", "seq", "floor_after")}
        assert type(record).__name__.lower().removeprefix("secure") == expect["type"]
        assert receiver.verifier.expected == expect["seq"] + 1
        assert receiver.guard.floor == expect.get("floor_after", case["receiver"]["floor"])
        assert not isinstance(record, SecureEnvelope) or record.sig == frame[4:36].hex()
    assert deserialize(frame[36:], getattr(record, "sig", "")) == (expect["seq"], record)


def fields(record: SecureEnvelope | Rejection | Receipt | Close) -> dict[str, Any]:
    """As ``expect`` has them."""
    if isinstance(record, SecureEnvelope):
        names = ("ts", "nonce", "kind", "trace_id", "reply_to", "target", "headers")
        return {name: getattr(record, name) for name in names} | {"payload": record.payload_bytes.hex()}
    assert not isinstance(record, Rejection), record.category
    found = record._asdict() | {"rejected": [[seq, str(category)] for seq, category in record.rejected]}
    if isinstance(record, Close):
        found |= {"category": str(record.category), "cause": found.pop("seq")}
    return found


@cases("records_reject")
def test_a_record_is_refused_with_the_category(case: Case) -> None:
    for segments in ways(bytes.fromhex(case["frame"])):
        receiver = Receiver(case)
        before = len(receiver.guard), receiver.verifier.through, receiver.outbox.buffered
        if case["ends_connection"]:
            with pytest.raises(Fault) as caught:
                receiver.take(segments)
            assert str(caught.value.category) == case["category"]
            assert (len(receiver.guard), receiver.verifier.through, receiver.outbox.buffered) == before
            assert receiver.verifier.expected == case["receiver"]["expected_seq"]
        else:
            (rejection,) = receiver.take(segments)
            assert isinstance(rejection, Rejection)
            assert str(rejection.category) == case["category"]
            assert receiver.verifier.rejected == [(receiver.verifier.through, rejection.category)]


def test_an_envelope_that_is_malformed_does_not_read_outside_the_chain_either() -> None:
    """``deserialize`` knows no state and checks no signature, but it has the same eyes."""
    tried = 0
    for case in load("records_reject")["cases"]:
        frame = bytes.fromhex(case["frame"])
        if case["category"] == "malformed" and frame[36:37] == b"\1":
            tried += 1
            with pytest.raises(Malformed):
                deserialize(frame[36:])
    assert tried > 60
