"""What the package logs, as lines."""

from __future__ import annotations

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface import implementer


@implementer(ILogObserver)
class Lines(list[str]):
    """A log observer that keeps the package's lines above debug, oldest first."""

    def __call__(self, event: LogEvent) -> None:
        if str(event.get("log_namespace")).startswith("ipc_twisted") and event["log_level"] > LogLevel.debug:
            self.append(formatEvent(event))
