"""Lets the hostile process loose on the execution process, and looks how that fared."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import msgspec

from examples.web_execution.events import Events
from examples.web_execution.execution_process import run_hostile
from examples.web_execution.link_watch import LinkWatch, refusals
from examples.web_execution.victim import record
from ipc_twisted import IPCError

Attack = Literal["replay", "forge"]

_TITLES = {"replay": "Replay of a recorded connection", "forge": "Forged record"}


class NotPossible(Exception):
    """There is nobody to attack. The text says why."""


async def attack(kind: Attack, connection_file: Path, watch: LinkWatch, events: Events) -> dict[str, object]:
    """Attack once. What became of it is what the execution process has counted meanwhile.

    :returns: ``refused``: the categories that were counted, ``rendered``: tiles that the attack had rendered, ``saw``:
        what the hostile process saw.
    :raises NotPossible: the execution process is not there.
    """
    try:
        recording, client = await asyncio.to_thread(record, connection_file, keep_open=kind == "forge")
        with client:
            before = await watch.ping()
            if kind == "replay":
                client.close()  # the recorded connection is over
                loot = {"port": recording.port, "recording": [data.hex() for data in recording.sent]}
                seen = await run_hostile(kind, msgspec.json.encode(loot))
            else:
                loot = {"descriptor": client.fileno(), "record": recording.sent[-1].hex()}
                seen = await run_hostile(kind, msgspec.json.encode(loot), [client.fileno()])
        after = await watch.ping()
    except (OSError, IPCError, TimeoutError, RuntimeError) as problem:
        raise NotPossible(f"not possible now: {type(problem).__name__}: {problem}") from None
    earlier = refusals(before)
    refused = [where for where, count in refusals(after).items() if count > earlier.get(where, 0)]
    saw = msgspec.json.decode(seen)["saw"]
    if refused:
        events.log(f"{_TITLES[kind]}: refused ({', '.join(refused)}). Hostile process: {saw}.", "good")
    else:
        events.log(f"{_TITLES[kind]}: NOT refused. Hostile process: {saw}.", "bad")
    watch.tell()
    return {"refused": refused, "saw": saw}
