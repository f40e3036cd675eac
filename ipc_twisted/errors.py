"""Every way a message or a connection can fail, as stable strings, and the exceptions that carry them.

A category is the label of log lines, receipts, metrics and exceptions alike. A category is never renamed: other
people's scripts and dashboards rely on the strings.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Category(StrEnum):
    """What a connection or a message ended in. ``str(category)`` is the wire, log and metric form."""

    # Handshake: ends the connection. Logged here, never told to the unauthenticated peer.
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    HANDSHAKE_MALFORMED = "handshake_malformed"
    VERSION_UNSUPPORTED = "version_unsupported"
    KEY_UNKNOWN = "key_unknown"
    AUTHENTICATION_FAILED = "authentication_failed"
    EARLY_DATA = "early_data"
    SELF_CONNECT = "self_connect"
    HANDSHAKE_REFUSED = "handshake_refused"
    EVICTED = "evicted"

    # Record: ends the connection with a signed CLOSE.
    MALFORMED = "malformed"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    SIGNATURE_MISSING = "signature_missing"
    SIGNATURE_INVALID = "signature_invalid"
    SEQUENCE_GAP = "sequence_gap"
    REPLAYED = "replayed"
    CREDIT_EXCEEDED = "credit_exceeded"
    FRAME_TIMEOUT = "frame_timeout"

    # Envelope: that one message is rejected, its sender is told by RECEIPT, the connection goes on. (And REPLAYED.)
    KIND_NOT_ALLOWED = "kind_not_allowed"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    OUTSIDE_REPLAY_WINDOW = "outside_replay_window"
    REPLAY_CACHE_FULL = "replay_cache_full"
    SHUTTING_DOWN = "shutting_down"

    # Connection: why it ended, where no record was at fault. (And SHUTTING_DOWN, KEY_UNKNOWN.)
    CLOSED = "closed"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    CLOCK_STEPPED = "clock_stepped"
    WRITE_STALLED = "write_stalled"
    RECEIPT_TIMEOUT = "receipt_timeout"
    CONNECTION_LOST = "connection_lost"

    # Local: nothing went over the wire.
    BIND_FORBIDDEN = "bind_forbidden"
    CONFIG_INVALID = "config_invalid"
    KEY_INVALID = "key_invalid"
    KEY_FILE_INSECURE = "key_file_insecure"
    CONNECTION_FILE_INVALID = "connection_file_invalid"
    NOT_CONNECTED = "not_connected"
    SEND_BUFFER_FULL = "send_buffer_full"
    DELIVERY_UNKNOWN = "delivery_unknown"


class IPCError(Exception):
    """Base of everything this package raises on purpose; ``category`` says which of the stable ends it is."""

    def __init__(self, category: Category, message: str) -> None:
        super().__init__(message)
        self.category = category

    def __str__(self) -> str:
        return f"{self.category}: {self.args[0]}"

    def __reduce__(self) -> tuple[type[IPCError], tuple[object, ...]]:
        return type(self), (self.category, self.args[0])


class ConfigError(IPCError, ValueError):
    """One or more configuration values are wrong; ``problems`` has a line for each, with its full path."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(Category.CONFIG_INVALID, "; ".join(self.problems))

    def __str__(self) -> str:
        return "\n".join([f"{self.category}:", *(f"  {problem}" for problem in self.problems)])

    def __reduce__(self) -> tuple[type[IPCError], tuple[object, ...]]:
        return type(self), (self.problems,)


class BindForbidden(IPCError, ValueError):
    """An endpoint other than ``tcp:PORT:interface=127.0.0.1``, or a socket that was bound elsewhere."""


class KeyFileError(IPCError):
    """A secret or its file cannot be used: ``key_invalid`` or ``key_file_insecure``. Never holds any of the secret."""


class ConnectionFileError(IPCError):
    """The connection file cannot be trusted, read or written (``connection_file_invalid``)."""


class HandshakeError(IPCError):
    """No authenticated connection came about; the message names what it can be."""


class EnvelopeError(IPCError, ValueError):
    """``send()`` refused its arguments: ``malformed`` or ``payload_too_large``. Nothing was queued."""


class NotConnected(IPCError):
    """The connection has ended, or is ending, and takes no more messages: ``not_connected``, or what it ended in."""


class SendBufferFull(IPCError):
    """``limits.send_buffer_bytes`` of messages wait for an outcome; await ``drained()`` and send again."""


class Rejected(IPCError):
    """The message was not handed over to the other side's handler, and never will be by this send."""


class DeliveryUnknown(IPCError):
    """The connection ended before the outcome was known: the message was handed over once, or not at all."""
