"""The execution process: ``twistd ipc --handler examples.web_execution.execution:handle``."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import cast

import msgspec
from twisted.internet.defer import DeferredSemaphore
from twisted.internet.threads import deferToThread

from examples.web_execution.fractal import render
from examples.web_execution.messages import PING, PONG, RENDERED, Pong, TileRequest
from ipc_twisted import NotConnected, SecureEnvelope, SecureIPCProtocol
from ipc_twisted.factory import SharedFactory
from ipc_twisted.statistics import statistics


class _Work:
    """Counted for the panel."""

    rendering = 0
    rendered = 0
    one_at_a_time = DeferredSemaphore(1)  # threads share the interpreter: more of them would only slow the reactor


async def handle(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
    """Called by the link with every envelope that passed its checks: its kind is one of ``allowed_kinds``.

    :raises msgspec.ValidationError: a payload that is not what it should be; the link logs and counts it.
    """
    if envelope.kind == PING:
        counted = statistics(cast(SharedFactory, connection.factory))
        pong = Pong(os.getpid(), _Work.rendering, _Work.rendered, counted)
        connection.send(PONG, msgspec.json.encode(pong), trace_id=envelope.trace_id)
        return
    request = msgspec.json.decode(envelope.payload_bytes, type=TileRequest)
    _Work.rendering += 1
    try:
        async with _Work.one_at_a_time:
            if not connection.is_open:
                return  # nobody is left to answer; who still wants the tile asks again
            tile = await deferToThread(render, request.scene, request.column, request.row)
        _Work.rendered += 1
        with suppress(NotConnected):
            connection.send(RENDERED, tile, trace_id=envelope.trace_id, target=envelope.reply_to)
    finally:
        _Work.rendering -= 1
