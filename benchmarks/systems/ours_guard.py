"""This package with a replay guard for four million messages; its receiver also says what the guard held."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.systems import ours
from benchmarks.work import OnMessage, held_bytes
from ipc_twisted import SecureIPCFactory

_settings = ours.config(nonce_cache_size=4_000_000, ttl_seconds=30)
_LOOK_EVERY = 10_000
flood = partial(ours.flood, settings=_settings)


def receive(on_message: OnMessage, announce: Callable[[Any], None]) -> None:
    factories: list[SecureIPCFactory] = []
    began = held_bytes()
    count = entries = 0

    def watching(message: bytes) -> bytes | None:
        nonlocal count, entries
        count += 1
        if count % _LOOK_EVERY == 0:
            entries = max(entries, len(factories[0].guard))
        answer = on_message(message)
        if answer is None:
            return None
        rejected = sum(n for (where, _), n in factories[0].counters.items() if where == "rejected")
        return json.dumps({**json.loads(answer), "began": began, "entries": entries, "rejected": rejected}).encode()

    ours.receive(watching, announce, _settings, factories.append)
