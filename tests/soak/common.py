"""What the scenarios share: the report, figures of other processes, and the processes themselves.

Nothing here asserts: what must hold is told to a :class:`Report`, so that a run says all that is wrong, and so under
``python -O`` too. Another process is waited for by polling it, or by its lines, always with a deadline.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import msgspec

from ipc_twisted import Statistics
from tests.raw_peer import Peer
from tests.twistd_child import ROOT, Finished, TwistdChild, read_key

KIND = "job.run"
REFUSED_KIND = "job.refused"
"""What no receiver here takes."""

HANDLER = "tests.soak.handlers:by_target"
MIB = 1024 * 1024
SECONDS = 60.0
"""How long another process is waited for, unless told otherwise."""

T = TypeVar("T")


class Report:
    """The figures of one run, and what did not hold.

    :ivar broken: one line for each thing that did not hold; empty: all did.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: list[str] = []
        self.broken: list[str] = []

    def figure(self, what: str, value: object) -> None:
        """Something that was measured."""
        self.lines.append(f"  {what}: {value}")

    def holds(self, what: str, condition: object, found: object = None) -> None:
        """Something that must hold.

        :param found: what was found, for the reader.
        """
        line = what if found is None else f"{what} ({found})"
        self.lines.append(f"  {'holds' if condition else 'DOES NOT HOLD'}: {line}")
        if not condition:
            self.broken.append(line)

    def __str__(self) -> str:
        return "\n".join([f"{self.name} on {machine()}", *self.lines])


def machine() -> str:
    """The machine that the figures are of."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    return (
        f"{platform.node()}: {models[0] if models else platform.machine()}, {os.cpu_count()} CPUs, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def poll(what: str, condition: Callable[[], T], seconds: float = SECONDS, every: float = 0.005) -> T:
    """Ask until the answer is true, and return it.

    :raises TimeoutError: it did not become true in time.
    """
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(every)
    return answer


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which so large a share of ``values`` lies; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


# --- other processes, from /proc --------------------------------------------------------------------------------------


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/status has no {name}")


def rss(pid: int) -> int:
    """Bytes of memory that are resident now."""
    return _status(pid, "VmRSS")


def peak_rss(pid: int) -> int:
    """The most bytes that ever were."""
    return _status(pid, "VmHWM")


def descriptors(pid: int) -> int:
    """Open file descriptors."""
    return len(os.listdir(f"/proc/{pid}/fd"))


# --- the receiver -----------------------------------------------------------------------------------------------------


def write_key_file(path: Path, *keys: str) -> None:
    """Write a key file with these keys (hex digits), the current one first; atomically, only for this uid."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.writelines(f"{key}\n" for key in keys)
    temporary.replace(path)


def new_key() -> str:
    """Hex digits of a new random key."""
    return secrets.token_hex(32)


class Receiver:
    """One ``twistd ipc`` after another, all with the same key, connection file and hand-over log.

    :param folder: for all files.
    :param config: of the link, without its ``auth``.
    :param auth: more of that.
    :param handler: as for ``--handler``.
    :ivar key_file: of the first key, unless it is written anew.
    :ivar output: what the ended ones have logged.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any] | None = None,
        auth: Mapping[str, Any] | None = None,
        handler: str = HANDLER,
    ) -> None:
        self.folder = folder
        self.key_file = folder / "server.key"
        write_key_file(self.key_file, new_key())
        self._auth = {"secret_mode": "static", "key_file": str(self.key_file), **(auth or {})}
        self._config = {"allowed_kinds": [KIND], "auth": self._auth, **(config or {})}
        self._handler = handler
        self._child: TwistdChild | None = None
        self.output = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.close()

    def start(self) -> None:
        """Start one, and wait until it listens."""
        self._child = TwistdChild(config=self._config, handler=self._handler, folder=self.folder)
        self._child.__enter__()

    def end(self, number: signal.Signals, seconds: float = SECONDS) -> Finished:
        """End it by a signal, and wait."""
        self.child.signal(number)
        return self.ended(seconds)

    def ended(self, seconds: float = SECONDS) -> Finished:
        """Wait for its end."""
        child = self.child
        finished = child.wait(seconds)
        child.close()
        self.output += finished.output
        return finished

    @property
    def child(self) -> TwistdChild:
        """The one that runs, or ran last."""
        if self._child is None:
            raise RuntimeError("it was not started")
        return self._child

    @property
    def pid(self) -> int:
        return self.child.process.pid

    @property
    def connection_file(self) -> Path:
        return self.child.connection_file

    @property
    def key(self) -> bytes:
        """The secret, while the key file holds one only."""
        return read_key(self.key_file)

    @property
    def log(self) -> Path:
        """What :mod:`tests.soak.handlers` has written."""
        return self.child.records_file

    def handed_over(self, at_least: int, seconds: float = SECONDS) -> int:
        """Wait until so many envelopes were handed over, of all its lives."""
        return poll(f"{at_least} handed over", lambda: (n := len(lines(self.log, "h"))) >= at_least and n, seconds)


class Control:
    """A raw peer of a receiver that asks what it holds, and finds out whether it works.

    :param receiver: one that runs.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._peer = Peer.connect(receiver.child.port, receiver.key)
        self._pid = receiver.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._peer.close()

    def ask(self, target: str) -> None:
        """Send a message, and wait until it is accepted.

        :raises AssertionError: it ended otherwise.
        """
        outcome = self._peer.receipt_for(self._peer.send_envelope(KIND, target=target, trace_id="control"))
        if outcome != "accepted":
            raise AssertionError(f"a message on an open connection ended {outcome}")

    def report(self) -> dict[str, Any]:
        """See :mod:`tests.soak.handlers`."""
        self._peer.send_envelope(KIND, target="report", trace_id="control")
        answer: dict[str, Any] = json.loads(self._peer.read_envelope()["payload"])
        self._peer.send_receipt()
        return answer

    def resident(self) -> int:
        """Bytes of memory that the receiver uses: what is resident, without what its allocator keeps for later."""
        self.ask("trim")
        return rss(self._pid)

    def statistics(self) -> Statistics:
        """What the receiver has counted."""
        return msgspec.convert(self.report()["statistics"], Statistics)


def lines(log: Path, mark: str) -> list[str]:
    """The trace ids of a log's lines that begin with ``mark``."""
    if not log.exists():
        return []
    with log.open(encoding="utf-8") as file:
        return [line[2:-1] for line in file if line[0] == mark and line[-1] == "\n"]


def loud(output: str) -> list[str]:
    """The lines of a child's log that are above the level info, or of a traceback."""
    marks = ("#warn]", "#error]", "#critical]", "Traceback", "Unhandled")
    return [line for line in output.splitlines() if any(mark in line for mark in marks)]


# --- programs that speak lines of JSON --------------------------------------------------------------------------------


class Program:
    """A Python module as a process: commands go in, and events come out, as lines of JSON.

    :param folder: for what it writes to its standard error.
    """

    def __init__(self, folder: Path, name: str, module: str, options: Mapping[str, Any]) -> None:
        self.name = name
        self._errors = folder / f"{name}.err"
        self._events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._ended = False
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", module, json.dumps(options)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        stream = self.process.stdout
        if stream is not None:
            with stream:
                for line in stream:
                    with self._changed:
                        self._events.append(json.loads(line))
                        self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()  # the end of its commands is its end
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()

    def tell(self, do: str, **more: Any) -> None:
        """Give a command."""
        if self.process.stdin is not None:
            self.process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
            self.process.stdin.flush()

    def events(self, event: str) -> list[dict[str, Any]]:
        """All of one kind so far."""
        with self._changed:
            return [one for one in self._events if one["event"] == event]

    def wait_for(self, event: str, seconds: float = SECONDS, *, times: int = 1, **fields: Any) -> dict[str, Any]:
        """Wait until an event with these fields has come that many times; return the last of them.

        :raises TimeoutError: it did not, or the process has ended. One that still runs is made to say where, and ends.
        """
        deadline = time.monotonic() + seconds
        wanted = {"event": event, **fields}
        with self._changed:
            while len(found := [one for one in self._events if wanted.items() <= one.items()]) < times:
                if self._ended or not self._changed.wait(deadline - time.monotonic()):
                    ended = self._ended
                    break
            else:
                return found[times - 1]
        if not ended:
            self.process.send_signal(signal.SIGABRT)
        code = self.process.wait(20)
        raise TimeoutError(
            f"{self.name} {'ended' if ended else 'still ran'} and did not say {wanted} {times} times; "
            f"its exit code is {code}, and its errors are:\n{self.errors}"
        )

    @property
    def errors(self) -> str:
        """What it wrote to its standard error."""
        return self._errors.read_text(encoding="utf-8", errors="replace")


class Sender(Program):
    """A :mod:`tests.soak.sender`.

    :param more: of its options.
    """

    def __init__(self, receiver: Receiver, number: int, **more: Any) -> None:
        name = f"s{number}"
        self.log = receiver.folder / f"{name}.log"
        options = {
            "name": name,
            "where": str(receiver.connection_file),
            "key_file": str(receiver.key_file),
            "log": str(self.log),
            **more,
        }
        super().__init__(receiver.folder, name, "tests.soak.sender", options)
        self._barriers = 0

    def ask_settled(self) -> int:
        """Ask to be told when all that was sent so far has an outcome; the answer is for :meth:`wait_settled`."""
        self._barriers += 1
        self.tell("barrier", number=self._barriers)
        return self._barriers

    def wait_settled(self, number: int, seconds: float = SECONDS) -> None:
        """Wait for that."""
        self.wait_for("barrier", seconds, number=number)

    def state(self) -> dict[str, Any]:
        """What it counts and holds now."""
        self.tell("state")
        return self.wait_for("state", times=len(self.events("state")) + 1)

    def stop(self, seconds: float = SECONDS) -> dict[str, Any]:
        """Stop its service; what it had counted at the end."""
        self.tell("stop")
        return self.wait_for("stopped", seconds)


def all_settled(senders: Sequence[Sender], seconds: float = SECONDS) -> None:
    """Wait until all that they have sent until now has an outcome."""
    for sender, number in [(sender, sender.ask_settled()) for sender in senders]:
        sender.wait_settled(number, seconds)


# --- what both sides wrote --------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How a message ended, and when on the machine's monotonic clock."""

    category: str
    at: float


class Ledger(NamedTuple):
    """What became of every message, by its trace id, and who was handed over."""

    outcomes: dict[str, Outcome]
    handed_over: set[str]

    def counted(self) -> dict[str, int]:
        """How many ended in what."""
        return dict(Counter(outcome.category for outcome in self.outcomes.values()).most_common())

    def ended(self, category: str) -> dict[str, Outcome]:
        """Those that ended in it."""
        return {trace_id: outcome for trace_id, outcome in self.outcomes.items() if outcome.category == category}


def settle_accounts(report: Report, senders: Iterable[Sender], receiver: Receiver) -> Ledger:
    """Hold what the senders wrote against what the receiver's handler wrote; both sides must have ended."""
    sent: set[str] = set()
    outcomes: dict[str, Outcome] = {}
    twice_sent = twice_ended = 0
    for sender in senders:
        with sender.log.open(encoding="utf-8") as file:
            for line in file:
                mark, trace_id, *rest = line.split()
                if mark == "s":
                    twice_sent += trace_id in sent
                    sent.add(trace_id)
                else:
                    twice_ended += trace_id in outcomes
                    outcomes[trace_id] = Outcome(rest[0], float(rest[1]))
        report.holds(f"{sender.name} wrote no error", not sender.errors, sender.errors or None)
    handed = lines(receiver.log, "h")
    ledger = Ledger(outcomes, set(handed))
    report.figure("sent", len(sent))
    report.figure("outcomes", ledger.counted())
    report.figure("handed over", len(handed))
    missing, extra = len(sent - outcomes.keys()), len(outcomes.keys() - sent)
    report.holds(
        "every send ended in exactly one outcome",
        not (twice_sent or twice_ended or missing or extra),
        f"{missing} without, {twice_ended} with two, {extra} of none",
    )
    report.holds("nothing was handed over twice", len(handed) == len(ledger.handed_over), len(handed))
    strangers = len(ledger.handed_over - sent)
    report.holds("nothing was handed over that nobody sent", not strangers, strangers)
    not_handed = len(ledger.ended("accepted").keys() - ledger.handed_over)
    report.holds("accepted only if handed over", not not_handed, f"{not_handed} were not")
    rejected = {name for name, o in outcomes.items() if o.category not in ("accepted", "delivery_unknown")}
    wrongly = len(rejected & ledger.handed_over)
    report.holds("rejected only if never handed over", not wrongly, f"{wrongly} of {len(rejected)} were")
    return ledger
