"""``python -m examples.web_execution [--port N]``: start both processes, say where, and end both on Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import tempfile
from pathlib import Path

try:
    import uvicorn

    from examples.web_execution.application import make
except ModuleNotFoundError as problem:
    sys.exit(f"{problem.name} is missing: pip install -e '.[example]', in the checkout")
from examples.web_execution.events import Events


class Server(uvicorn.Server):
    """Says where it is once that is so, and ends its open streams when it is told to end."""

    def __init__(self, config: uvicorn.Config, events: Events, port: int) -> None:
        super().__init__(config)
        self._events = events
        self._port = port

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"Open http://127.0.0.1:{self._port}/ in a browser; Ctrl-C ends it.", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._events.close()
        await super().shutdown(sockets)


def main() -> int:
    """Run until a signal."""
    parser = argparse.ArgumentParser(prog="python -m examples.web_execution", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="of the web page, on 127.0.0.1; 0: any (default: 8000)")
    options = parser.parse_args()
    if not 0 <= options.port <= 65_535:
        parser.error("--port: must be from 0 to 65535")
    try:
        listening = socket.create_server(("127.0.0.1", options.port))
    except OSError as problem:
        parser.error(f"--port: cannot listen on 127.0.0.1:{options.port}: {problem.strerror}")
    with listening, tempfile.TemporaryDirectory(prefix="web_execution-") as folder:  # made 0700
        port = listening.getsockname()[1]
        events = Events()
        application = make(port, Path(folder) / "execution.json", events)
        config = uvicorn.Config(
            application, log_level="warning", server_header=False, ws="none", timeout_graceful_shutdown=5
        )
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again behind its end; this tidies up
        Server(config, events, port).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # uvicorn raises the signal again, once all is in order
        sys.exit(0)
