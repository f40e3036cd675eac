"""States that differ only in names are one: the canonical form of a state."""

from __future__ import annotations

from itertools import permutations, product
from typing import TypeVar

from tests.model import sessions
from tests.model.protocol import content
from tests.model.sessions import Client, Server, State
from tests.model.setting import Dialled, Names, Setting, renamed
from tests.model.terms import Term, rebuilt

_Fields = TypeVar("_Fields", sessions.Answer, sessions.Hello)


class _Renaming:
    """One way to give other names that leaves the beginning as it is.

    :param servers: for each old number of a server session the new one.
    :param processes: likewise.
    :ivar clients: for each new number the old one; of server sessions too.
    """

    def __init__(self, names: Names, servers: tuple[int, ...], processes: dict[int, int], records: int) -> None:
        self.clients = [names.clients.index(new) for new in range(len(names.clients))]
        self.servers = [servers.index(new) for new in range(len(servers))]
        self._client_sessions: dict[Client, Client] = {}
        self._server_sessions: dict[Server, Server] = {}
        self._names = names
        self._server_numbers = servers
        self._processes = processes
        self._terms: dict[Term, Term] = {
            old_term: new_term
            for make, numbers in (
                (sessions.client_nonce, dict(enumerate(names.clients))),
                (sessions.server_nonce, dict(enumerate(servers))),
                (sessions.instance, processes),
                (sessions.service, dict(enumerate(names.services))),
                (sessions.server_address, dict(enumerate(names.ports))),
                (sessions.client_address, names.addresses),
            )
            for old_term, new_term in ((make(old), make(new)) for old, new in numbers.items())
        }
        for sender, numbers in (("client", names.clients), ("server", servers)):
            for (old, new), record in product(enumerate(numbers), range(records)):
                self._terms[content(sender, old, record)] = content(sender, new, record)

    def state(self, state: State) -> State:
        """The same under the new names."""
        clients, servers = state
        return State(
            tuple([self._client(clients[old]) for old in self.clients]),
            tuple([self._server(servers[old]) for old in self.servers]),
        )

    def _client(self, old: Client) -> Client:
        new = self._client_sessions.get(old)
        if new is None:
            new = self._client_sessions[old] = self._other_client(old)
        return new

    def _server(self, old: Server) -> Server:
        new = self._server_sessions.get(old)
        if new is None:
            new = self._server_sessions[old] = self._other_server(old)
        return new

    def _other_client(self, old: Client) -> Client:
        number, names = self._names.clients[old.number], self._names
        answer = None if old.answer is None else self._all(old.answer)
        return sessions.client(
            number, names.services[old.service], names.ports[old.port], names.addresses[old.address], answer
        )

    def _other_server(self, old: Server) -> Server:
        names = self._names
        return sessions.server(
            self._server_numbers[old.number],
            self._processes[old.process],
            names.services[old.service],
            names.ports[old.port],
            names.addresses.get(old.source, sessions.OWN_ADDRESS),
            self._all(old.hello),
        )

    def _all(self, fields: _Fields) -> _Fields:
        return type(fields)(*map(self._term, fields))

    def _term(self, old: Term) -> Term:
        new = self._terms.get(old)
        if new is None:
            new = self._terms[old] = rebuilt(old, tuple(map(self._term, old.parts)))
        return new


def serials(state: State) -> list[int]:
    """For a fixed order of states."""
    return [session.serial for sessions in state for session in sessions]


class Symmetry:
    """The symmetries of one beginning: of its clients, services, ports and addresses; server sessions have all."""

    def __init__(self, dialled: tuple[Dialled, ...], setting: Setting) -> None:
        self._names = [names for other, names in renamed(dialled, setting) if other == dialled]
        self._records = setting.records
        self._renamings: dict[tuple[int, ...], list[_Renaming]] = {}

    def canonical(self, state: State) -> State:
        """The same for states that differ in names only, and for no others."""
        renamings = self._renamings_for(tuple([server.process for server in state.servers]))
        if len(renamings) == 1:
            return state
        return min([renaming.state(state) for renaming in renamings], key=serials)

    def _renamings_for(self, processes: tuple[int, ...]) -> list[_Renaming]:
        found = self._renamings.get(processes)
        if found is None:
            found = self._renamings[processes] = [
                _Renaming(names, servers, _processes(processes, servers), self._records)
                for servers in permutations(range(len(processes)))
                for names in self._names
            ]
        return found


def _processes(processes: tuple[int, ...], servers: tuple[int, ...]) -> dict[int, int]:
    """A process is called by the first of its sessions, also after those have other numbers."""
    return {
        process: min(servers[number] for number, other in enumerate(processes) if other == process)
        for process in processes
    }
