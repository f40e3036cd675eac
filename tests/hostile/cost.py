"""What peers cost that have not proved themselves, measured at a real ``twistd ipc``.

``python -m tests.hostile.cost`` prints, for those that are silent, that send garbage, that send M1, and that send M1
and a wrong M3:

* the bytes of their input that are held, at most 128,
* the bytes they are answered, at most 100,
* the server's processor time for each of their connects, beyond what a Twisted factory takes, in a process of its own
  and in turns with it, that aborts each connection at once: at most 60 µs for whoever comes no further than M1,
* the rate of an honest pair while 500 such connects come in a second: at least 70 % of what it is without them.

Exit 1 if one of them does not hold. Linux only: elsewhere a process cannot read the processor time of another one. The
attackers know a key id, which others do not: without one, an M1 is garbage of the right size.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FunctionType, ModuleType

from tests import wire_peer as wire
from tests.core_pair import NOW, server
from tests.raw_channel import DEFAULT_LIMITS
from tests.raw_peer import SERVICE, Peer
from tests.twistd_child import ROOT, TwistdChild

MOST_HELD = 128
MOST_ANSWERED = 100
MOST_MICROSECONDS = 60.0
LEAST_RATE = 0.7
FLOOD_PER_SECOND = 500
M2_BYTES = 100
GARBAGE = bytes(range(64, 132))

Act = Callable[[int, bytes], int]
"""One hostile connect to a port, by who has seen this M1; returns the bytes it was answered."""


# --- what they do -----------------------------------------------------------------------------------------------------


_SILENT: deque[Peer] = deque()
_SILENT_AT_ONCE = 200


def silent(port: int, _m1: bytes) -> int:
    """Connect and say nothing; so many are held at once that each makes the server give up another one."""
    _SILENT.append(Peer.open(port))
    if len(_SILENT) <= _SILENT_AT_ONCE:
        return 0
    with _SILENT.popleft() as oldest:
        return len(oldest.wait_eof())


def let_go() -> None:
    """Of the silent ones that are held."""
    while _SILENT:
        _SILENT.popleft().close()


def garbage(port: int, _m1: bytes) -> int:
    """As long as M1, and nothing of it."""
    return _say(port, GARBAGE)


def first_message(port: int, m1: bytes) -> int:
    """M1 with a known key id, read the answer, and reset."""
    with Peer.open(port) as peer:
        peer.send_raw(m1)
        answered = len(peer.read_exactly(M2_BYTES))
        peer.abort()
        return answered


def wrong_proof(port: int, m1: bytes) -> int:
    """M1 with a known key id, and a proof that is none."""
    with Peer.open(port) as peer:
        peer.send_raw(m1)
        answered = len(peer.read_exactly(M2_BYTES))
        peer.send_raw(wire.prefixed(wire.m3(bytes(range(32)))))
        return answered + len(peer.wait_eof())


def _say(port: int, data: bytes) -> int:
    with Peer.open(port) as peer:
        with suppress(ConnectionError):
            peer.send_raw(data)
        return len(peer.wait_eof())


KINDS: dict[str, Act] = {
    "silent": silent,
    "garbage": garbage,
    "M1 only": first_message,
    "M1 and a wrong M3": wrong_proof,
}

UP_TO_M1 = ("silent", "garbage", "M1 only")
"""Of whom :data:`MOST_MICROSECONDS` is wanted: a wrong M3 has to be looked at, in a turn of its own."""


# --- bytes held -------------------------------------------------------------------------------------------------------


def bytes_held(kind: str) -> int:
    """How much of its input the core's connection of such a peer refers to, at most, the input coming byte by byte."""
    side = server()
    m1 = wire.prefixed(wire.m1(wire.key_id(wire.prk(bytes(range(32))), SERVICE), DEFAULT_LIMITS, os.urandom(32)))
    said = {"silent": b"", "garbage": GARBAGE, "M1 only": m1, "M1 and a wrong M3": m1}[kind]
    if kind == "M1 and a wrong M3":
        said += wire.prefixed(wire.m3(os.urandom(32)))
    most = 0
    before = {id(held) for held in _bytes_within(side.connection)}
    for at in range(len(said)):
        side.connection.receive_data(said[at : at + 1], NOW)
        side.output()
        held = [held for held in _bytes_within(side.connection) if id(held) not in before and bytes(held) in said]
        most = max(most, sum(map(len, held)))
    return most


def _bytes_within(root: object) -> list[bytes | bytearray]:
    """All bytes that are reached from an object through instances and containers."""
    seen: set[int] = set()
    found: list[bytes | bytearray] = []
    waiting: list[object] = [root]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type | FunctionType | ModuleType):
            continue
        seen.add(id(thing))
        if isinstance(thing, bytes | bytearray):
            found.append(thing)
        else:
            waiting += gc.get_referents(thing)
    return found


# --- processor time ---------------------------------------------------------------------------------------------------


def processor_seconds(pid: int) -> float:
    """That a process has used so far, all threads: Linux's clock of another process."""
    return time.clock_gettime((~pid << 3) | 2)


def _microseconds(pid: int, port: int, act: Act, m1: bytes, connects: int) -> tuple[float, int]:
    """Processor time of each connect, and the most bytes that one was answered."""
    before = processor_seconds(pid)
    answered = max(act(port, m1) for _ in range(connects))
    _settle(port, m1)
    seconds = processor_seconds(pid) - before
    let_go()  # or those that come next would have to make room
    _settle(port, m1)
    return seconds * 1e6 / connects, answered


def _settle(port: int, m1: bytes) -> None:
    """What the connects before this one left to the next turns is done when this is answered or ended."""
    with suppress(ConnectionError), Peer.open(port) as peer:
        peer.send_raw(m1)
        peer.read_exactly(1)


class Cost:
    """Processor time, from rounds in turns.

    :ivar base: µs of each connect to the factory that aborts; ``ours``: to the server, by kind.
    :ivar answered: the most bytes, by kind.
    """

    def __init__(self) -> None:
        self.base: dict[str, list[float]] = {name: [] for name in KINDS}
        self.ours: dict[str, list[float]] = {name: [] for name in KINDS}
        self.answered = dict.fromkeys(KINDS, 0)

    def difference(self, name: str) -> float:
        """The median over the rounds."""
        return statistics.median(b - a for a, b in zip(self.base[name], self.ours[name], strict=True))


def _aborted(port: int, _m1: bytes) -> int:
    """To the factory that aborts each connection, nothing need be said."""
    with suppress(ConnectionError), Peer.open(port) as peer:
        return len(peer.wait_eof())
    return 0  # it was aborted before our side knew that it was connected


def measure_cost(child: TwistdChild, aborting: subprocess.Popen[str], port: int, rounds: int, connects: int) -> Cost:
    """Both servers in turns."""
    cost = Cost()
    m1 = first(child)
    for number in range(rounds + 1):
        for name, act in KINDS.items():
            base, _ = _microseconds(aborting.pid, port, _aborted, m1, connects)
            ours, answered = _microseconds(child.process.pid, child.port, act, m1, connects)
            if number:  # the first round warms up
                cost.base[name].append(base)
                cost.ours[name].append(ours)
            cost.answered[name] = max(cost.answered[name], answered)
    return cost


def first(child: TwistdChild) -> bytes:
    """An M1 under the child's key id, which somebody may have seen."""
    return wire.prefixed(wire.m1(wire.key_id(wire.prk(child.key), SERVICE), DEFAULT_LIMITS, bytes(range(32))))


# --- an honest pair under a flood -------------------------------------------------------------------------------------


class Flood:
    """So many connects a second from threads of this process, until :meth:`stop`.

    :ivar done: how many there were; ``errors``: those that the system or the server cut short.
    """

    _THREADS = 8

    def __init__(self, port: int, act: Act, m1: bytes, per_second: int) -> None:
        self.done = self.errors = 0
        self._act = act
        self._arguments = port, m1
        self._interval = self._THREADS / per_second
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(self._THREADS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ending.wait(max(0.0, due - time.monotonic())):
            due += self._interval
            try:
                self._act(*self._arguments)
            except OSError:
                self.errors += 1
            self.done += 1

    def stop(self) -> None:
        """And wait for the last ones."""
        self._ending.set()
        for thread in self._threads:
            thread.join()


class Samples:
    """What the honest client prints, read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._lines: list[tuple[float, int]] = []
        self._came = threading.Condition()
        self._stream = process.stdout
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream or ():
            at, accepted = line.split()
            with self._came:
                self._lines.append((float(at), int(accepted)))
                self._came.notify_all()

    def rate(self, seconds: float) -> float:
        """Messages a second from now on, for so long."""
        with self._came:
            start = self._next()
            end = start
            while end[0] < start[0] + seconds:
                end = self._next()
        return (end[1] - start[1]) / (end[0] - start[0])

    def _next(self) -> tuple[float, int]:
        known = len(self._lines)
        if not self._came.wait_for(lambda: len(self._lines) > known, timeout=20):
            raise RuntimeError("the honest client says nothing more")
        return self._lines[-1]


def measure_rate(child: TwistdChild, rounds: int, seconds: float) -> dict[str, tuple[float, float, float]]:
    """By kind: messages a second without and with the flood, in turns, and the connects a second there were."""
    found = {}
    with helper("honest", str(child.connection_file), folder=child.folder) as client:
        samples = Samples(client)
        samples.rate(seconds)
        for name, act in KINDS.items():
            quiet, flooded, connects = [], [], []
            for _ in range(rounds):
                quiet.append(samples.rate(seconds))
                flood = Flood(child.port, act, first(child), FLOOD_PER_SECOND)
                began = time.monotonic()
                try:
                    flooded.append(samples.rate(seconds))
                finally:
                    connects.append(flood.done / (time.monotonic() - began))
                    flood.stop()
                    let_go()
            quiet.append(samples.rate(seconds))
            found[name] = statistics.median(quiet), statistics.median(flooded), statistics.median(connects)
    return found


@contextmanager
def helper(*arguments: str, folder: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process of :mod:`tests.hostile.cost_children`; it is ended behind the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.hostile.cost_children", *arguments],
        cwd=ROOT,
        env={**os.environ, **({} if folder is None else {"XDG_RUNTIME_DIR": str(folder)})},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        with process:
            process.wait(20)


# --- the report -------------------------------------------------------------------------------------------------------


def machine() -> str:
    """Where the figures are from."""
    names = (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
             if line.startswith("model name"))  # fmt: skip
    return (
        f"{next(names, platform.machine())}, {os.cpu_count()} processors, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.cost", description="Measure what strangers cost.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--connects", type=int, default=300, help="in each round, of each kind (default 300)")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each window of the honest pair (default 1.5)")
    parser.add_argument("--windows", type=int, default=3, help="of them, with and without (default 3)")
    options = parser.parse_args(arguments)
    if not sys.platform.startswith("linux"):
        print("only Linux tells the processor time of another process")
        return 2
    print(machine())
    with ExitStack() as stack:
        child = stack.enter_context(TwistdChild())
        aborting = stack.enter_context(helper("abort"))
        port = int((aborting.stdout or sys.stdin).readline())
        cost = measure_cost(child, aborting, port, options.rounds, options.connects)
        rates = measure_rate(child, options.windows, options.seconds)
        if "Traceback" in child.log:
            print("the server logged a traceback")
            return 1
    failed = []
    wanted = f"held <= {MOST_HELD}, answered <= {MOST_ANSWERED}, more <= {MOST_MICROSECONDS:.0f} us up to M1"
    print(f"{'':18} {'held':>5} {'answered':>8} {'us':>6} {'abort us':>8} {'more':>6}   honest pair, messages/s")
    for name in KINDS:
        held, answered, more = bytes_held(name), cost.answered[name], cost.difference(name)
        ours, base = statistics.median(cost.ours[name]), statistics.median(cost.base[name])
        quiet, flooded, connects = rates[name]
        print(
            f"{name:18} {held:>5} {answered:>8} {ours:>6.1f} {base:>8.1f} {more:>6.1f}   "
            f"{quiet:,.0f} alone, {flooded:,.0f} beside {connects:,.0f} connects/s: {flooded / quiet:.0%}"
        )
        checks = itertools.compress(
            ("bytes held", "bytes answered", "processor time", "honest rate"),
            (
                held > MOST_HELD,
                answered > MOST_ANSWERED,
                more > MOST_MICROSECONDS and name in UP_TO_M1,
                flooded < LEAST_RATE * quiet,
            ),
        )
        failed += [f"{name}: {check}" for check in checks]
    print(f"wanted: {wanted}, rate >= {LEAST_RATE:.0%}")
    print("does not hold: " + "; ".join(failed) if failed else "all hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
