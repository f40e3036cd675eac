"""Nonces that are never the same twice in any process of this host, also after a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count

_PREFIX_BYTES = 12


class NonceSource:
    """A random prefix of 96 bits and a counter: one draw of randomness a process instead of one a message.

    :ivar prefix: names the process: a fork has another one. Cheaper than asking the kernel.
    :ivar next: a new nonce, 25 characters or a few more. Of a C iterator, because every message takes one.
    """

    prefix: str
    next: Callable[[], str]

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin a new prefix."""
        self.prefix = os.urandom(_PREFIX_BYTES).hex()
        self.next = map(f"{self.prefix}%x".__mod__, count()).__next__


process_nonces = NonceSource()
os.register_at_fork(after_in_child=process_nonces.renew)
