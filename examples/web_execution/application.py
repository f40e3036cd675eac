"""The web application: what the page asks for, and what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel

from examples.web_execution.attacks import Attack, NotPossible, attack
from examples.web_execution.events import Events
from examples.web_execution.execution_process import FOLDER, ExecutionProcess
from examples.web_execution.link_watch import LinkWatch
from examples.web_execution.messages import PONG, RENDERED, Pong
from examples.web_execution.renderings import Busy, Renderings
from examples.web_execution.same_origin import App, SameOrigin
from ipc_twisted import SecureEnvelope, SecureIPCProtocol, embed

STATIC = FOLDER / "static"
_FILES = {
    "": ("index.html", "text/html"),
    "style.css": ("style.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}


class Order(BaseModel, extra="forbid"):
    """What the page orders."""

    scene: Literal["whole", "seahorses", "spiral"]


class Desk:
    """What the routes work with, once the application is up."""

    renderings: Renderings
    watch: LinkWatch
    process: ExecutionProcess
    attacking: asyncio.Lock


def make(port: int, connection_file: Path, events: Events) -> App:
    """The application.

    :param port: that it will be served on.
    :param connection_file: where the execution process says where it listens.
    """
    desk = Desk()

    def handle(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
        """Called by the link with what the execution process sends."""
        if envelope.kind == PONG:
            desk.watch.take(envelope, connection)
        else:
            desk.renderings.take(envelope)

    def look(pinged_at: float, pong: Pong) -> None:
        desk.renderings.look(pinged_at, pong)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        desk.attacking = asyncio.Lock()
        desk.process = ExecutionProcess(connection_file, events)
        await desk.process.start()
        try:
            async with embed.client(connection_file, allowed_kinds={RENDERED, PONG}, handler=handle) as link:
                desk.renderings = Renderings(link, events)
                desk.watch = LinkWatch(link, events, look)
                watching = asyncio.create_task(desk.watch.run())
                try:
                    yield
                finally:
                    watching.cancel()
                    with suppress(asyncio.CancelledError):
                        await watching
                    await desk.renderings.close()
        finally:
            await desk.process.stop()

    application = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @application.get("/events")
    async def read_events() -> StreamingResponse:
        if events.is_full:
            raise HTTPException(503, "too many pages are open")
        return StreamingResponse(events.read(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    @application.post("/pictures", status_code=202)
    async def order(wanted: Order) -> dict[str, str]:
        try:
            return {"id": desk.renderings.begin(wanted.scene).id}
        except Busy:
            raise HTTPException(409, "a picture is being rendered: wait until it is complete") from None

    @application.get("/pictures/{picture}/{number}.png")
    async def tile(picture: str, number: int) -> Response:
        shown = desk.renderings.picture
        if shown is None or shown.id != picture or number not in shown.tiles:
            raise HTTPException(404, "there is no such tile")
        return Response(shown.tiles[number], media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    @application.post("/attacks/{kind}")
    async def let_loose(kind: Attack) -> dict[str, Any]:
        async with desk.attacking:
            try:
                return await attack(kind, connection_file, desk.watch, events)
            except NotPossible as problem:
                raise HTTPException(409, str(problem)) from None

    @application.post("/execution/kill")
    async def kill() -> dict[str, str]:
        await desk.process.kill()
        return {}

    @application.post("/execution/start")
    async def start() -> dict[str, str]:
        await desk.process.start()
        return {}

    @application.get("/")
    @application.get("/{name}")
    async def static(name: str = "") -> FileResponse:
        if name not in _FILES:
            raise HTTPException(404, "there is no such page")
        file, media_type = _FILES[name]
        return FileResponse(STATIC / file, media_type=media_type, headers={"cache-control": "no-cache"})

    return SameOrigin(application, port)
