"""grpcio with local credentials over TCP: a stream of messages one way, unary calls for round trips."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

import grpc

from benchmarks.systems import blocking
from benchmarks.work import Meter, OnMessage

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def receive(on_message: OnMessage, announce: Callable[[Any], None]) -> None:
    def many(messages: Iterator[bytes], _context: Any) -> bytes:
        for message in messages:
            answer = on_message(message)
            if answer is not None:
                return answer
        return b""

    def one(message: bytes, _context: Any) -> bytes:
        return on_message(message) or b""

    handlers = {"many": grpc.stream_unary_rpc_method_handler(many), "one": grpc.unary_unary_rpc_method_handler(one)}
    server = grpc.server(ThreadPoolExecutor(4), options=_OPTIONS)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("benchmark", handlers)])
    port = server.add_secure_port("127.0.0.1:0", grpc.local_server_credentials(grpc.LocalConnectionType.LOCAL_TCP))
    server.start()
    announce(port)
    time.sleep(3600)  # its threads serve


class Link:
    def __init__(self, where: Any) -> None:
        credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.LOCAL_TCP)
        options = [*_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]  # else all share one connection
        self._channel = grpc.secure_channel(f"127.0.0.1:{where}", credentials, options)
        self.many = self._channel.stream_unary("/benchmark/many")
        self._one = self._channel.unary_unary("/benchmark/one")
        self.close = self._channel.close

    def send(self, message: bytes) -> None:
        self._answer = self._one(message)

    def receive(self) -> bytes:
        return bytes(self._answer)


def flood(where: Any, size: int, warm: int, count: int) -> dict[str, Any]:
    link, payload = Link(where), bytes(size)
    for phase in (warm, count):
        meter = Meter()
        receiver = json.loads(link.many(repeat(payload, phase)))
        sender = meter.read()
    link.close()
    return {"sender": sender, "receiver": receiver}


def ping(*arguments: Any) -> Any:
    return blocking.ping(Link, *arguments)


def dial(*arguments: Any) -> Any:
    return blocking.dial(Link, *arguments)
