"""A secure local inter-process transport for Twisted, over TCP on 127.0.0.1."""

from ipc_twisted.client_service import ExecutionIPCClientService, LinkState
from ipc_twisted.config import ExecutionIPCConfig
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.delivery import Delivery
from ipc_twisted.endpoints import connect, listen
from ipc_twisted.errors import (
    BindForbidden,
    Category,
    ConfigError,
    ConnectionFileError,
    DeliveryUnknown,
    EnvelopeError,
    HandshakeError,
    IPCError,
    KeyFileError,
    NotConnected,
    Rejected,
    SendBufferFull,
)
from ipc_twisted.factory import SecureIPCFactory
from ipc_twisted.keys import Keyring
from ipc_twisted.protocol import SecureIPCProtocol
from ipc_twisted.service import ExecutionIPCService
from ipc_twisted.statistics import Statistics

__all__ = [
    "BindForbidden",
    "Category",
    "ConfigError",
    "ConnectionFileError",
    "Delivery",
    "DeliveryUnknown",
    "EnvelopeError",
    "ExecutionIPCClientService",
    "ExecutionIPCConfig",
    "ExecutionIPCService",
    "HandshakeError",
    "IPCError",
    "KeyFileError",
    "Keyring",
    "LinkState",
    "NotConnected",
    "Rejected",
    "SecureEnvelope",
    "SecureIPCFactory",
    "SecureIPCProtocol",
    "SendBufferFull",
    "Statistics",
    "connect",
    "listen",
]
