"""What every application on 127.0.0.1 needs: web pages of others, open in the same browser, can reach its port, too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_CONTENT_BYTES = 4096
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class SameOrigin:
    """Let through what this application's own page sends, and add the headers that its browser shall go by.

    * ``Host`` must be ours. A page of another name that was made to resolve to 127.0.0.1 (DNS rebinding) sends its own.
    * ``Origin`` must be ours where there is one, and there must be one on what changes anything: browsers add it to
      every POST, and no page can choose it.
    * What is sent must say its length, and be short: the application would keep all of it in memory.

    :param port: that is listened on.
    """

    def __init__(self, app: App, port: int) -> None:
        self._app = app
        self._hosts = {f"127.0.0.1:{port}".encode(), f"localhost:{port}".encode()}
        self._origins = {b"http://" + host for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
        elif scope["type"] == "http":
            status, text = refusal
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send_with_headers({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": text})

    def _refusal(self, scope: Scope) -> tuple[int, bytes] | None:
        if scope["type"] != "http":
            return 403, b""  # such as a WebSocket, which there is none of
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return 421, b"Host: must be 127.0.0.1 or localhost, with this port\n"
        changes = scope["method"] not in ("GET", "HEAD")
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        if len(origins) > 1 or any(origin not in self._origins for origin in origins) or (changes and not origins):
            return 403, b"Origin: must be this application's own\n"
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])  # counts more than the length
        if changes and (chunked or not lengths or not lengths[0].isdigit() or int(lengths[0]) > MAX_CONTENT_BYTES):
            return 413, b"Content-Length: must be there, and at most %d\n" % MAX_CONTENT_BYTES
        return None
