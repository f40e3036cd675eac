"""Sign and verify one record: HMAC-SHA256 over its body, as it stands on the wire.

The key schedule of HMAC is run once per key; every record starts from a copy of that state.
"""

from __future__ import annotations

from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

SIG_BYTES = 32

BytesLike = bytes | bytearray | memoryview

_SHA256 = SHA256()


def sign_once(key: bytes, data: bytes) -> bytes:
    """The 32-byte tag under a key that signs nothing else: :meth:`MacKey.sign` without the copy that it keeps."""
    mac = HMAC(key, _SHA256)
    mac.update(data)
    return mac.finalize()


class MacKey:
    """One HMAC-SHA256 key, held only inside pyca/cryptography's HMAC object.

    :ivar new: start a computation; ``new()`` has ``update(data)``, ``finalize() -> bytes`` and ``verify(tag)``, the
        last of which compares in constant time and raises ``InvalidSignature``. For loops that cannot afford a call
        of ours.
    """

    __slots__ = ("new",)

    def __init__(self, key: bytes) -> None:
        self.new = HMAC(key, _SHA256).copy

    def sign(self, *parts: BytesLike) -> bytes:
        """The 32-byte tag over the concatenation of ``parts``."""
        mac = self.new()
        for part in parts:
            mac.update(part)
        return mac.finalize()

    def verifies(self, tag: bytes, *parts: BytesLike) -> bool:
        """Whether ``tag`` is the one over ``parts``; takes the same time wherever they differ."""
        mac = self.new()
        for part in parts:
            mac.update(part)
        try:
            mac.verify(tag)
        except InvalidSignature:
            return False
        return True

    def __repr__(self) -> str:
        return "<MacKey (redacted)>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key cannot be pickled")
