"""The symbolic model of the handshake: no attack on the design, the right one on each that is weakened, and the same
bytes and decisions as the package. The bound and what is left out are said in :mod:`tests.model`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import product
from struct import Struct
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc_twisted.core.handshake import ClientHandshake, Endpoint, Limits, ServerHandshake
from ipc_twisted.core.key_schedule import Prk
from ipc_twisted.core.verifier import Fault
from tests import core_pair as frozen
from tests.model import sessions
from tests.model.__main__ import main
from tests.model.attacker import Attacker
from tests.model.design import NEEDED, REAL, SPARE, Design
from tests.model.evaluate import evaluate
from tests.model.promises import Broken, Promise, broken
from tests.model.protocol import SECRET, Handshake, View, body, content, handshake, key_id, m2, m3, prk, signature
from tests.model.rules import End, Rules, Situation
from tests.model.search import following, search
from tests.model.sessions import LIMITS, Answer, Client, Hello, Server, State
from tests.model.setting import Setting, beginnings, renamed, state_of
from tests.model.symmetry import Symmetry
from tests.model.terms import Term, anything, hmac, literal, match, name, row
from tests.model.trace import trace
from tests.test_frozen_vector import ENVELOPE, M1, M2, M3

SMALL = Setting(clients=2, servers=2, ports=2, services=1)
SERVICES = Setting(clients=2, servers=2, ports=1, services=2)
"""An attack within a small bound is one within every larger bound."""


# The design


@pytest.mark.attack(16, 17, 18, 19, 20)
@pytest.mark.parametrize(
    ("setting", "states", "completed"),
    [
        (SMALL, 4_211, 610),
        (SERVICES, 4_211, 610),
        (Setting(clients=3, servers=2, ports=2, services=1), 17_507, 2_392),
        pytest.param(Setting(clients=3, servers=2, ports=2, services=2), 195_044, 14_568, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_there_is_no_attack_on_the_design_within_the_bound(setting: Setting, states: int, completed: int) -> None:
    """As many states as ever: who makes the search smaller has to say so here."""
    report = search(REAL, setting)
    assert report.attacks == {}
    assert (report.states, report.completed) == (states, completed)


def test_honest_ends_complete_also_while_everything_passes_through_the_attacker() -> None:
    """Without that, "no attack" would say nothing."""
    rules = Rules(REAL, SMALL)
    pairs: Counter[tuple[int, int]] = Counter()
    for state in everything(rules, SMALL, state_of(((0, 0, 0), (0, 1, 1)))):
        situation = rules.situation(state)
        pairs[len(situation.completed_clients), len(situation.completed_servers)] += 1
    assert pairs.keys() == {(0, 0), (1, 1), (2, 2)}


# Each design that is weakened


class Attack(NamedTuple):
    """What the model has to find.

    :ivar steps: what happens, in the order of the trace.
    """

    weakness: str
    setting: Setting
    broken: Broken
    steps: tuple[str, ...]


def at(end: str, promise: Promise, *how: str) -> Broken:
    return Broken(promise, end, frozenset(how))


RUN = ("dial", "M1", "M2", "M3")
"""One client and one server complete."""

ATTACKS = {
    "relay to a server on another port": Attack(
        "no endpoint binding", SMALL, at("client", Promise.AGREEMENT, "server_address", "client_address"), RUN
    ),
    "relay to a server on the same port": Attack(
        "no endpoint binding", SMALL, at("client", Promise.AGREEMENT, "client_address"), RUN
    ),
    "relay to a server on the same port where another ran before": Attack(
        "no endpoint binding", SMALL, at("client", Promise.AGREEMENT, "client_address", "restarted"), ("M1", *RUN)
    ),
    "relay seen from the server": Attack(
        "no endpoint binding", SMALL, at("server", Promise.AGREEMENT, "server_address", "client_address"), RUN
    ),
    "reflection of the server's own tag: it completes with nobody": Attack(
        "no role separation", SMALL, at("server", Promise.AGREEMENT, "nobody"), ("M1", "M3")
    ),
    "replay of a recorded client side": Attack(
        "constant server nonce", SMALL, at("server", Promise.OWN_KEYS, "server"), (*RUN, "M1", "M3")
    ),
    "replay of a recorded client side, with its records": Attack(
        "constant server nonce", SMALL, at("server", Promise.RECORDS, "by another too"), (*RUN, "M1", "M3")
    ),
    "replay of a recorded server side": Attack(
        "client nonce outside the transcript", SMALL, at("client", Promise.OWN_KEYS, "client"), (*RUN, "dial", "M2")
    ),
    "replay of a recorded server side, with its records": Attack(
        "client nonce outside the transcript",
        SMALL,
        at("client", Promise.RECORDS, "by another too"),
        (*RUN, "dial", "M2"),
    ),
    "a record reflected to its sender": Attack(
        "one key for both directions", SMALL, at("client", Promise.RECORDS, "its own"), RUN
    ),
    "a squatter without the key gets what the client sends": Attack(
        "the client proves itself first", SMALL, at("client", Promise.AGREEMENT, "nobody"), ("dial", "M2")
    ),
    "other limits than the client's": Attack(
        "client limits outside the transcript", SMALL, at("server", Promise.AGREEMENT, "client_limits"), RUN
    ),
    "other limits than the server's": Attack(
        "server limits outside the transcript", SMALL, at("client", Promise.AGREEMENT, "server_limits"), RUN
    ),
    "a guard that is not the server's": Attack(
        "instance outside the transcript", SMALL, at("client", Promise.AGREEMENT, "instance"), RUN
    ),
    "relay to another service": Attack(
        "service in no key and no transcript", SERVICES, at("client", Promise.AGREEMENT, "service"), RUN
    ),
    "keys that the attacker computes": Attack(
        "connection keys that need no secret", SMALL, at("client", Promise.SECRET_KEYS), ("dial", "M2")
    ),
    "a record of another connection": Attack(
        "record keys that are the same for all connections",
        SMALL,
        at("server", Promise.RECORDS, "of another"),
        (*RUN, *RUN),
    ),
    "a record accepted twice": Attack(
        "no sequence number in records", SMALL, at("server", Promise.RECORDS, "again"), RUN
    ),
}


@pytest.mark.attack(16, 17, 18, 19, 20)
@pytest.mark.parametrize("kind", ATTACKS)
def test_the_model_finds_the_attack_on_each_weakened_design(kind: str) -> None:
    weakness, setting, wanted, steps = ATTACKS[kind]
    design = REAL.without(*NEEDED[weakness])
    report = search(design, setting, until=wanted.__eq__)
    told = trace(Rules(design, setting), report.attacks[wanted])
    assert Counter(step.kind for step in told) == Counter(steps), told
    assert {wanted} <= set(broken(Rules(design, setting), Rules(design, setting).situation(report.attacks[wanted])))


def test_every_decision_that_is_needed_has_an_attack_on_the_design_without_it() -> None:
    assert {attack.weakness for attack in ATTACKS.values()} == set(NEEDED)


@pytest.mark.parametrize("spare", SPARE)
def test_without_what_is_there_twice_there_is_still_no_attack(spare: str) -> None:
    """Such a test says what holds the design up, and what may go only as long as the other stays."""
    report = search(REAL.without(*SPARE[spare]), SERVICES if "service" in spare else SMALL)
    assert report.attacks == {}
    assert report.completed > 0


def test_every_decision_is_needed_or_there_twice() -> None:
    named = {decision for decisions in (*NEEDED.values(), *SPARE.values()) for decision in decisions}
    assert named == {field for field, value in vars(REAL).items() if value}


def test_the_command_says_how_far_it_looked_and_tells_each_attack(capsys: pytest.CaptureFixture[str]) -> None:
    bound = ["--sessions", "1", "1", "--ports", "2", "--services", "1"]
    assert main(bound) == 0
    assert "states, " in capsys.readouterr().out
    assert main([*bound, "--design", "no endpoint binding"]) == 1
    said = capsys.readouterr().out
    assert "client 0 dials" in said
    assert f"broken at a client: {Promise.AGREEMENT} (client_address)" in said


# What makes the search small loses nothing


def everything(rules: Rules, setting: Setting, *first: State) -> Iterator[State]:
    """Every state behind ``first``, found without any symmetry; nothing behind one that shows an attack."""
    seen = set(first)
    waiting = list(first)
    while waiting:
        state = waiting.pop()
        yield state
        situation = rules.situation(state)
        if not any(broken(rules, situation)):
            new = set(following(rules, setting, situation)) - seen
            seen |= new
            waiting += new


def all_beginnings(setting: Setting) -> Iterator[State]:
    places = product(range(setting.services), range(setting.ports), range(setting.clients))
    return map(state_of, product(places, repeat=setting.clients))


WIDE = "the client proves itself first"
"""A client accepts anything: there are so many states that only the smallest searches end soon."""


@pytest.mark.parametrize("weakness", ["nothing", *NEEDED])
def test_symmetry_hides_no_kind_of_attack(weakness: str) -> None:
    setting = Setting(
        clients=2, servers=1, ports=1 if weakness == WIDE else 2, services=2 if "service" in weakness else 1
    )
    design = REAL.without(*NEEDED.get(weakness, ()))
    rules = Rules(design, setting)
    found: set[Broken] = set()
    for state in everything(rules, setting, *all_beginnings(setting)):
        found.update(broken(rules, rules.situation(state)))
    assert found == search(design, setting).attacks.keys()


def test_there_is_one_canonical_form_for_all_states_that_differ_in_names_only() -> None:
    """Counted the other way round: all states of the canonical beginnings, each reduced afterwards."""
    rules = Rules(REAL, SMALL)
    forms: set[tuple[int, State]] = set()
    states = 0
    for number, dialled in enumerate(beginnings(SMALL)):
        symmetry = Symmetry(dialled, SMALL)
        for state in everything(rules, SMALL, state_of(dialled)):
            states += 1
            forms.add((number, symmetry.canonical(state)))
    assert len(forms) == search(REAL, SMALL).states < states / 2


def test_every_beginning_is_one_of_the_canonical_ones_under_other_names() -> None:
    setting = Setting(clients=3, servers=0, ports=2, services=2)
    kept = set(beginnings(setting))
    for places in product(product(range(2), range(2), range(3)), repeat=3):
        assert len({other for other, _ in renamed(places, setting)} & kept) == 1


@pytest.mark.parametrize("weakness", ["nothing", *NEEDED])
def test_what_a_client_accepts_is_the_same_when_every_answer_is_tried(weakness: str) -> None:
    setting = Setting(clients=1 if weakness == WIDE else 2, servers=1, ports=1, services=1)
    design = REAL.without(*NEEDED.get(weakness, ()))
    rules = Rules(design, setting)
    for state in everything(rules, setting, *map(state_of, beginnings(setting))):
        situation = rules.situation(state)
        assert set(rules.answers(situation)) == set(tried_answers(rules, situation))


def tried_answers(rules: Rules, situation: Situation) -> Iterator[tuple[Client, Answer]]:
    attacker = situation.attacker
    answers = [Answer(*fields) for fields in product(*map(attacker.fields, (8, 16, 32)))]
    for client, answer in product(situation.state.clients, answers):
        other = sessions.client(client.number, client.service, client.port, client.address, answer)
        made = rules.end(other).made
        proved = not rules.design.server_proves_itself_first or attacker.can_make(made.server_tag)
        own = answer.nonce is sessions.client_nonce(client.number)
        if client.answer is None and proved and not (own and rules.design.client_refuses_its_own_nonce):
            yield client, answer


# Terms and the attacker


def test_a_pattern_matches_only_what_fills_each_gap_with_one_term() -> None:
    gap, key, one, two = anything("x", 32), name("key", 0, 32), name("n", 1, 32), name("n", 2, 32)
    pattern = hmac(key, row(gap, literal(b"-"), gap))
    assert match(pattern, hmac(key, row(one, literal(b"-"), one))) == {gap: one}
    assert match(pattern, hmac(key, row(one, literal(b"-"), two))) is None
    assert match(pattern, hmac(key, row(one, literal(b"+"), one))) is None
    assert match(pattern, hmac(one, row(one, literal(b"-"), one))) is None
    assert match(gap, literal(b"too short")) is None


def test_the_attacker_computes_with_what_it_has_and_undoes_nothing() -> None:
    key, message = name("key", 0, 32), name("message", 0, 32)
    signed = hmac(key, message)
    assert not Attacker([message]).can_make(signed)
    assert Attacker([message, signed]).can_make(row(signed, literal(b"anything")))
    assert Attacker([message, key]).can_make(signed)
    assert not Attacker([signed]).can_make(key)
    assert not Attacker([signed]).can_make(message)


# The same bytes as the package's


class Bytes(dict[Term, bytes]):
    """Bytes for every name; those not given are made up, as the kind of the name wants them."""

    def __missing__(self, term: Term) -> bytes:
        made = hashlib.sha256(repr(term).encode()).digest()
        match term.details:
            case "service", int(number):
                self[term] = b"service-%d" % number
            case "port", int(number):
                self[term] = packed("127.0.0.1", 40_001 + number)
            case "address", number:
                self[term] = packed("127.0.0.1", 50_000 + number if isinstance(number, int) else 60_000)
            case _:
                self[term] = made[: term.size or 32]
        return self[term]


def packed(host: str, port: int) -> bytes:
    return bytes(map(int, host.split("."))) + port.to_bytes(2, "big")


def limits_of(value: bytes) -> Limits:
    return Limits(*Struct(">IIII").unpack(value))


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


def unframed(frame: bytes) -> bytes:
    return frame[4:]


def names_of(endpoint: Endpoint, **others: bytes) -> Bytes:
    """The bytes of the names in :data:`VIEW`."""
    server_host, server_port, client_host, client_port = endpoint
    given = {
        VIEW.server_address: packed(server_host, server_port),
        VIEW.client_address: packed(client_host, client_port),
        SECRET: others["secret"],
        VIEW.service: others["service"],
        VIEW.client_limits: others["client_limits"],
        VIEW.client_nonce: others["client_nonce"],
        VIEW.instance: others["instance"],
        VIEW.server_limits: others["server_limits"],
        VIEW.server_nonce: others["server_nonce"],
    }
    return Bytes(given)


SERVICE = sessions.service(0)
VIEW = View(
    SERVICE,
    sessions.server_address(0),
    sessions.client_address(0),
    key_id(REAL, SERVICE),
    name("limits", "the client's", 16),
    sessions.client_nonce(0),
    sessions.instance(0),
    name("limits", "the server's", 16),
    sessions.server_nonce(0),
)
MADE = handshake(REAL, VIEW)
FROZEN = names_of(
    frozen.ENDPOINT,
    secret=frozen.SECRET,
    service=frozen.SERVICE.encode(),
    client_limits=Struct(">IIII").pack(*frozen.LIMITS),
    server_limits=Struct(">IIII").pack(*frozen.LIMITS),
    client_nonce=frozen.NONCE_C,
    server_nonce=frozen.NONCE_S,
    instance=frozen.INSTANCE,
)


@pytest.mark.parametrize(
    ("term", "value"),
    [
        (prk(REAL), "4d0d02778f844db02399411df7716737d1adc765bd41ec8e7dbb0c54f9bd8400"),
        (VIEW.key_id, "0e693fc16244bd21"),
        (MADE.transcript, "04f92a534d894f62aa8b9e060f65084e16cef8f8018ba2a7448d1c263bc490d0"),
        (MADE.keys.client_to_server, "66669e29d4f58b971b7dc5dc4ce01f753675c844fb815b1c33c4c0cea64546da"),
        (MADE.keys.server_to_client, "a439b33dcc13da0c8597e760ae761aaea33e8a89b8cb5e35b774507b05a7c506"),
        (MADE.m1, unframed(M1).hex()),
        (m2(MADE), unframed(M2).hex()),
        (m3(MADE), unframed(M3).hex()),
    ],
    ids=["prk", "key id", "transcript", "k_c2s", "k_s2c", "m1", "m2", "m3"],
)
def test_the_terms_are_the_bytes_of_the_frozen_vector(term: Term, value: str) -> None:
    """Section 4.4 of the design."""
    assert evaluate(term, FROZEN).hex() == value


def test_the_signature_of_a_record_is_that_of_the_frozen_envelope() -> None:
    signed, inner = content("client", 0, 0), ENVELOPE[4 + 32 + 1 + 8 :]
    names = Bytes({**FROZEN, signed: inner})
    assert evaluate(body(REAL, 0, signed), names) == ENVELOPE[36:]
    assert evaluate(signature(REAL, MADE.keys.client_to_server, 0, signed), names) == ENVELOPE[4:36]


ADDRESS = st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 65_535))


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_the_terms_are_the_bytes_of_real_ends_whatever_the_names_are(data: st.DataObject) -> None:
    def draw(size: int) -> bytes:
        return data.draw(st.binary(min_size=size, max_size=size))

    (server_host, server_port), (client_host, client_port) = data.draw(
        st.tuples(ADDRESS, ADDRESS).filter(lambda both: both[0] != both[1])
    )
    names = names_of(
        Endpoint(server_host, server_port, client_host, client_port),
        secret=data.draw(st.binary(min_size=32, max_size=80)),
        service=data.draw(st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)).encode(),
        client_limits=draw(16),
        server_limits=draw(16),
        client_nonce=b"c" + draw(31),
        server_nonce=b"s" + draw(31),
        instance=draw(8),
    )
    client, server = real_client(VIEW, names), real_server(VIEW, names)
    sent = client.start()
    assert sent == framed(evaluate(MADE.m1, names))
    answered, _ = server.receive(sent)
    assert answered == framed(evaluate(m2(MADE), names))
    proved, _ = client.receive(answered)
    assert proved == framed(evaluate(m3(MADE), names))
    server.receive(proved)
    assert client.outcome is not None
    assert server.outcome is not None
    inner = content("client", 0, 7)
    for key, sender, receiver in (
        (MADE.keys.client_to_server, client.outcome.send_key, server.outcome.receive_key),
        (MADE.keys.server_to_client, server.outcome.send_key, client.outcome.receive_key),
    ):
        signed = evaluate(signature(REAL, key, 7, inner), names)
        assert sender.sign(evaluate(body(REAL, 7, inner), names)) == signed
        assert receiver.verifies(signed, evaluate(body(REAL, 7, inner), names))


def real_client(view: View, names: Bytes) -> ClientHandshake:
    return ClientHandshake(
        Prk(names[SECRET]),
        names[view.service].decode(),
        limits_of(names[view.client_limits]),
        endpoint_of(view, names),
        names[view.client_nonce],
    )


def real_server(view: View, names: Bytes) -> ServerHandshake:
    secret, service = Prk(names[SECRET]), names[view.service].decode()
    return ServerHandshake(
        {secret.key_id(service): secret},
        service,
        limits_of(names[view.server_limits]),
        names[view.instance],
        endpoint_of(view, names),
        names[view.server_nonce],
    )


def endpoint_of(view: View, names: Bytes) -> Endpoint:
    def read(address: bytes) -> tuple[str, int]:
        return ".".join(map(str, address[:4])), int.from_bytes(address[4:], "big")

    return Endpoint(*read(names[view.server_address]), *read(names[view.client_address]))


def test_real_ends_accept_exactly_what_those_of_the_model_accept() -> None:
    """In every state of a small search the real server and client are given all that the attacker can deliver."""
    setting = Setting(clients=2, servers=1, ports=1, services=1, records=1)
    rules, names = Rules(REAL, setting), Bytes()
    accepted = refused = 0
    for state in everything(rules, setting, *map(state_of, beginnings(setting))):
        situation = rules.situation(state)
        right = set(rules.answers(situation))
        for client in state.clients:
            if client.answer is None:
                for answer, tag in deliverable_answers(situation.attacker):
                    end = rules.end(sessions.client(client.number, *where(client), answer))
                    expected = (client, answer) in right and end.made.server_tag is tag
                    assert real_client_accepts(end, tag, names) == expected
                    accepted, refused = accepted + expected, refused + (not expected)
        for end in situation.servers:
            for tag in situation.attacker.fields(32):
                expected = end.made.client_tag is tag
                assert real_server_accepts(end, tag, names) == expected
                accepted, refused = accepted + expected, refused + (not expected)
    assert accepted > 5
    assert refused > 1_000


def where(client: Client) -> tuple[int, int, int]:
    return client.service, client.port, client.address


def deliverable_answers(attacker: Attacker) -> Iterator[tuple[Answer, Term]]:
    for *fields, tag in product(*map(attacker.fields, (8, 16, 32, 32))):
        yield Answer(*fields), tag


def real_client_accepts(end: End, tag: Term, names: Bytes) -> bool:
    client = real_client(end.view, names)
    client.start()
    said = delivered(client, row(end.made.m2_unsigned, tag), names)
    assert said is None or said == framed(evaluate(m3(end.made), names))
    return said is not None


def real_server_accepts(end: End, tag: Term, names: Bytes) -> bool:
    server = real_server(end.view, names)
    assert server.receive(framed(evaluate(end.made.m1, names))) == (framed(evaluate(m2(end.made), names)), b"")
    said = delivered(server, m3(end.made._replace(client_tag=tag)), names)
    assert not said, "the server says nothing after M3"
    return said is not None


def delivered(half: ClientHandshake | ServerHandshake, message: Term, names: Bytes) -> bytes | None:
    """What ``half`` says to ``message``, with which it completes; None if it refuses it."""
    try:
        said, _ = half.receive(framed(evaluate(message, names)))
    except Fault:
        assert half.outcome is None
        return None
    assert half.outcome is not None
    return said


NOT_IN_TERMS = {"server_nonce_fresh", "server_proves_itself_first", "client_refuses_its_own_nonce"}


@pytest.mark.parametrize("decision", sorted(set(vars(REAL)) - NOT_IN_TERMS))
def test_each_decision_taken_back_gives_other_bytes(decision: str) -> None:
    """So that a weakened design is one."""
    assert all_bytes(REAL.without(decision)) != all_bytes(REAL)


def all_bytes(design: Design) -> list[bytes]:
    made: Handshake = handshake(design, VIEW)
    signed = signature(design, made.keys.server_to_client, 0, content("server", 0, 0))
    terms = (key_id(design, SERVICE), made.transcript, *made.keys, made.server_tag, made.client_tag, signed)
    return [evaluate(term, FROZEN) for term in terms]


def test_a_state_says_who_it_is_about() -> None:
    """A server of the model is honest: its own limits, its own nonce, its process's instance."""
    rules = Rules(REAL, SMALL)
    hello = Hello(sessions.OWN_LIMITS, sessions.OWN_NONCE)
    first, again = (sessions.server(number, 0, 0, 1, sessions.OWN_ADDRESS, hello) for number in (0, 1))
    assert isinstance(first, Server)
    one, two = rules.end(first).view, rules.end(again).view
    assert (one.server_limits, one.instance, one.server_address) == (LIMITS, two.instance, sessions.server_address(1))
    assert one.server_nonce is not two.server_nonce
