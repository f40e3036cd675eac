"""Nonces that are never the same twice in any process of this host, also after a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import chain, count, cycle, repeat
from operator import add

_PREFIX_BYTES = 12

_LAST_BYTE = tuple(f"{number:02x}" for number in range(256))


class NonceSource:
    """A random prefix of 96 bits and a counter: one draw of randomness a process instead of one a message.

    :ivar prefix: names the process: a fork has another one. Cheaper than asking the kernel.
    :ivar next: a new nonce, 27 characters or a few more. Of C iterators, because every message takes one.
    """

    prefix: str
    next: Callable[[], str]

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin a new prefix."""
        self.prefix = os.urandom(_PREFIX_BYTES).hex()
        blocks = map(f"{self.prefix}%x".__mod__, count())  # of 256 each: to print a number takes longer than to add
        self.next = map(add, chain.from_iterable(map(repeat, blocks, repeat(256))), cycle(_LAST_BYTE)).__next__


process_nonces = NonceSource()
os.register_at_fork(after_in_child=process_nonces.renew)
