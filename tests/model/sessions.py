"""Sessions of honest ends: what each has been through, and no more.

A session is a value; going on makes another. Equal sessions are one object, as long as anybody has it, with a serial
number.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, TypeAlias
from weakref import WeakValueDictionary

from tests.model.terms import Term, anything, name

LIMITS = name("limits", "honest", 16)
OWN_LIMITS = name("limits", "the attacker's", 16)
OWN_NONCE = name("nonce", "the attacker's", 32)
OWN_INSTANCE = name("instance", "the attacker's", 8)
CONSTANT_NONCE = name("server nonce", "constant", 32)
OWN_CONTENT = name("record", "the attacker's", 0)
OWN_ADDRESS = -1


def service(number: int) -> Term:
    return name("service", number, 0)


def server_address(port: int) -> Term:
    return name("port", port, 6)


def client_address(number: int) -> Term:
    return name("address", number if number != OWN_ADDRESS else "the attacker's", 6)


def client_nonce(number: int) -> Term:
    return name("client nonce", number, 32)


def server_nonce(number: int) -> Term:
    return name("server nonce", number, 32)


def instance(process: int) -> Term:
    return name("instance", process, 8)


class Hello(NamedTuple):
    """What a server session took from an M1, beside the key id, of which only the right one is answered."""

    limits: Term
    nonce: Term


class Answer(NamedTuple):
    """What a client session took from an M2 whose tag was right."""

    instance: Term
    limits: Term
    nonce: Term


GAPS = Answer(anything("instance", 8), anything("limits", 16), anything("nonce", 32))


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Client:
    """A client session: it dialled ``port`` from ``address`` and sent M1.

    :ivar address: several sessions may have the same, one after the other.
    :ivar answer: the M2 that it accepted, and answered with M3; None while it has not.
    """

    serial: int
    number: int
    service: int
    port: int
    address: int
    answer: Answer | None


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Server:
    """A server session that took an M1 and sent M2.

    :ivar process: whose session it is: the number of the first session of that process. A process has one instance,
        one service and one port; a second process on the same port is a restart.
    :ivar source: the address that its socket names as the client's.
    """

    serial: int
    number: int
    process: int
    service: int
    port: int
    source: int
    hello: Hello


Session: TypeAlias = Client | Server

_serials = count()
_clients: WeakValueDictionary[tuple[int, int, int, int, Answer | None], Client] = WeakValueDictionary()
_servers: WeakValueDictionary[tuple[int, int, int, int, int, Hello], Server] = WeakValueDictionary()


def client(number: int, service: int, port: int, address: int, answer: Answer | None = None) -> Client:
    made = (number, service, port, address, answer)
    found = _clients.get(made)
    if found is None:
        found = _clients[made] = Client(next(_serials), *made)
    return found


def server(number: int, process: int, service: int, port: int, source: int, hello: Hello) -> Server:
    made = (number, process, service, port, source, hello)
    found = _servers.get(made)
    if found is None:
        found = _servers[made] = Server(next(_serials), *made)
    return found


class State(NamedTuple):
    """All clients, and the servers that have been spoken to; nothing else needs to be remembered.

    The order in which things came about is left out: what the attacker knows depends on what the sessions have said.
    """

    clients: tuple[Client, ...]
    servers: tuple[Server, ...]
