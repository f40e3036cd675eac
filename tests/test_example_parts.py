"""Parts of the example on their own: what no page makes them do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred

from ipc_twisted import Category, Rejected, SecureEnvelope, Statistics

if not (Path(__file__).parent.parent / "examples").is_dir():
    pytest.skip("a wheel has no examples: they are tested in the checkout", allow_module_level=True)

from examples.web_execution import attacks  # behind the look whether they are there
from examples.web_execution.events import MAX_READERS, Events, TooManyReaders
from examples.web_execution.execution import handle
from examples.web_execution.link_watch import refusals
from examples.web_execution.messages import RENDER, RENDERED, Pong
from examples.web_execution.renderings import TILES, Busy, Renderings
from examples.web_execution.victim import Recording


def pong(**counted: Any) -> Pong:
    fields: dict[str, Any] = {
        field.name: {} if str(field.type).startswith("dict") else 0 for field in msgspec.structs.fields(Statistics)
    }
    rendering = counted.pop("rendering", 0)
    return Pong(pid=1, rendering=rendering, rendered=0, statistics=Statistics(**fields | counted))


# --- events ---


def test_who_connects_is_told_how_things_are_and_what_comes() -> None:
    async def main() -> None:
        events = Events()
        events.publish("link", {"connected": False})
        events.publish("link", {"connected": True})
        events.log("one")
        reading = events.read()
        assert await anext(reading) == b'event: link\ndata: {"connected":true}\n\n'
        assert json.loads((await anext(reading)).partition(b"data: ")[2])["text"] == "one"
        events.log("two\n\nevent: link\ndata: {}")  # can be no event of its own
        event = await anext(reading)
        assert event.count(b"\n") == 3
        events.close()
        assert [event async for event in reading] == []

    asyncio.run(main())


def test_a_reader_that_is_too_slow_is_ended_and_others_are_not() -> None:
    async def main() -> None:
        events = Events()
        slow, quick = events.read(), events.read()
        events.log("the first")
        assert await anext(slow)
        assert await anext(quick)
        for number in range(1000):
            events.log(str(number))
            assert await anext(quick)
        assert len([event async for event in slow]) < 1000
        await quick.aclose()  # type: ignore[attr-defined]  # of a generator

    asyncio.run(main())


def test_there_are_places_for_so_many_readers() -> None:
    async def main() -> None:
        events = Events()
        events.log("something")
        readers = [events.read() for _ in range(MAX_READERS)]
        for reader in readers:
            await anext(reader)
        assert events.is_full
        with pytest.raises(TooManyReaders):
            await anext(events.read())
        await readers[0].aclose()  # type: ignore[attr-defined]  # of a generator
        assert not events.is_full
        for reader in readers[1:]:
            await reader.aclose()

    asyncio.run(main())


# --- renderings ---


class Link:
    """Its messages end as they are told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.sent: list[str] = []

    async def send(self, kind: str, payload_bytes: bytes, *, trace_id: str, reply_to: str) -> None:
        assert kind == RENDER
        self.sent.append(reply_to)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error


def tile(trace_id: str, target: str | None, size: int = 5) -> SecureEnvelope:
    return SecureEnvelope(0, "n", RENDERED, trace_id=trace_id, target=target, payload_bytes=b"x" * size)


async def settle(link: Link, count: int) -> None:
    while len(link.sent) < count:
        await asyncio.sleep(0)
    for _ in range(4):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("trace_id", "target", "size"),
    [("other", "0", 5), (None, "48", 5), (None, "-1", 5), (None, "²", 5), (None, None, 5), (None, "0", 64 * 1024 + 1)],
)
def test_what_is_no_tile_of_the_picture_is_not_taken(trace_id: str | None, target: str | None, size: int) -> None:
    async def main() -> None:
        renderings = Renderings(Link(), Events())  # type: ignore[arg-type]
        renderings.take(tile("x", "0"))  # before there is any picture
        picture = renderings.begin("whole")
        renderings.take(tile(trace_id or picture.id, target, size))
        assert picture.tiles == {}
        renderings.take(tile(picture.id, "7"))
        assert picture.tiles == {7: b"xxxxx"}
        await renderings.close()

    asyncio.run(main())


def test_what_was_handed_over_and_is_at_nothing_is_asked_for_again_and_nothing_else() -> None:
    async def main() -> None:
        link = Link()
        renderings = Renderings(link, Events())  # type: ignore[arg-type]
        picture = renderings.begin("whole")
        renderings.look(float("inf"), pong())  # no outcome yet: the link has them
        await settle(link, TILES)
        assert len(picture.accepted) == TILES
        renderings.look(float("inf"), pong(rendering=1))  # it is at them
        renderings.look(0.0, pong())  # was pinged before it had them
        renderings.take(tile(picture.id, "3"))
        await settle(link, TILES)
        assert len(link.sent) == TILES
        renderings.look(float("inf"), pong())
        await settle(link, 2 * TILES - 1)
        assert (picture.asked_again, link.sent.count("3")) == (TILES - 1, 1)
        with pytest.raises(Busy):
            renderings.begin("whole")
        await renderings.close()

    asyncio.run(main())


def test_what_the_link_rejected_is_asked_for_again() -> None:
    async def main() -> None:
        link, events = Link(Rejected(Category.EXPIRED, "too late")), Events()
        renderings = Renderings(link, events)  # type: ignore[arg-type]
        picture = renderings.begin("whole")
        await settle(link, TILES)
        assert (picture.accepted, picture.asked) == ({}, set())
        link.error = None
        renderings.look(0.0, pong(rendering=1))
        await settle(link, 2 * TILES)
        assert len(picture.accepted) == TILES
        await renderings.close()

    asyncio.run(main())


# --- execution, attacks ---


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b'{"scene":"other","column":0,"row":0}', b'{"scene":"whole","column":8,"row":0}', b"\xff"],
)
def test_a_payload_that_is_no_request_fails_before_any_work(payload: bytes) -> None:
    envelope = SecureEnvelope(0, "n", RENDER, payload_bytes=payload)
    failed = Deferred.fromCoroutine(handle(envelope, None))  # type: ignore[arg-type]  # it is not reached
    raised: list[Any] = []
    failed.addErrback(raised.append)
    assert raised[0].check(msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError)


def test_only_what_was_refused_counts_as_a_refusal() -> None:
    counted = pong(
        handshakes={"authenticated": 3, "authentication_failed": 1},
        ended={"closed": 1, "connection_lost": 2, "shutting_down": 1, "signature_invalid": 4},
        rejected={"expired": 5},
    )
    assert refusals(counted) == {
        "handshake: authentication_failed": 1,
        "connection: signature_invalid": 4,
        "message: expired": 5,
    }


def test_an_attack_that_is_not_refused_would_be_shown_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    class Socket:
        def __enter__(self) -> Socket:
            return self

        def __exit__(self, *_: object) -> None: ...

        def close(self) -> None: ...

    class Watch:
        async def ping(self) -> Pong:
            return pong()

        def tell(self) -> None: ...

    async def hostile(*_: object) -> bytes:
        return b'{"saw":"a tile"}'

    async def main() -> None:
        events = Events()
        result = await attacks.attack("replay", Path("x"), Watch(), events)  # type: ignore[arg-type]
        assert result == {"refused": [], "saw": "a tile"}
        assert b'NOT refused. Hostile process: a tile.","tone":"bad"' in await anext(events.read())

    recording = Recording(1, [b"1", b"2", b"3"])
    monkeypatch.setattr(attacks, "record", lambda *_, **__: (recording, Socket()))
    monkeypatch.setattr(attacks, "run_hostile", hostile)
    asyncio.run(main())
