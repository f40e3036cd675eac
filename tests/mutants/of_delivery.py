"""Replay guard, connection and outboxes: what hands a message over twice, or tells its sender what is not so."""

from tests.mutants.mutant import MutantsOf

_guard = MutantsOf("core/replay", "replay", "replay_safety")
_link = MutantsOf("core/connection", "connection_flow", "connection_credit", "connection", "connection_ends")
_box = MutantsOf("core/outbox", "connection_flow", "outbox", "outbox_ends")
_again = MutantsOf("core/resend", "resend", "delivery_model")

_FLOOR = "        self.floor = max(self.floor, ts + 1)\n"
_SECOND = "        second = self._seconds.get(ts)\n"
_SEEN = "        if nonce in seen:\n"
_SPACE = (
    "        if self._forgotten:\n"
    "            self._release()\n"
    "        if self._count >= self._capacity:\n"
    "            self._forget_for_space(now)\n"
    "            if self._count >= self._capacity:\n"
    "                return Category.REPLAY_CACHE_FULL\n"
    "            if ts < self.floor:  # its own second had to go\n"
    "                return Category.OUTSIDE_REPLAY_WINDOW\n"
)
_LOOK_UP = _SEEN + "            return Category.REPLAYED\n"
_THROUGH = "if not self._through <= through < written:"
_ASCENDING = "if not previous < seq <= through:"
_HAS_CREDIT = "if messages <= 0 or size > bytes_:"
_IDLE = "return self.in_flight == 0 and self.outbox.buffered == 0"

MUTANTS = [
    # The guard
    _guard("floor-never-set", "what was forgotten is accepted again", _FLOOR, ""),
    _guard(
        "floor-one-lower", "the second that was forgotten is accepted again", _FLOOR, _FLOOR.replace("ts + 1", "ts")
    ),
    _guard(
        "floor-falls",
        "a clock that goes back opens it",
        _SECOND,
        "        self.floor = min(self.floor, now)\n" + _SECOND,
    ),
    _guard(
        "floor-unchecked",
        "what was forgotten is accepted again",
        "        if ts < self.floor:\n            return",
        "        if False:\n            return",
    ),
    _guard(
        "floor-told-wrong",
        "a sender cannot tell a full guard from an old message",
        "Category.OUTSIDE_REPLAY_WINDOW if ts >= now - self._ttl else Category.EXPIRED",
        "Category.EXPIRED",
    ),
    _guard(
        "own-second-forgotten",
        "a message is remembered in a second below the floor",
        "            if ts < self.floor:  # its",
        "            if False:  # its",
    ),
    _guard("nonce-never-seen", "a message is handed over twice", _SEEN, "        if False:\n"),
    _guard(
        "nonce-per-second", "a nonce is taken again under another ts", _SEEN, "        if nonce in (second or ()):\n"
    ),
    _guard("look-up-after-space", "a replay pushes others out", _LOOK_UP + _SPACE, _SPACE + _LOOK_UP),
    _guard(
        "capacity",
        "it grows without a bound",
        "            if self._count >= self._capacity:\n                return Category.REPLAY_CACHE_FULL\n",
        "",
    ),
    _guard(
        "capacity-one-more",
        "one more than configured",
        "        if self._count >= self._capacity:\n            self._f",
        "        if self._count > self._capacity:\n            self._f",
    ),
    _guard(
        "last-second-goes",
        "the second before this one is forgotten for space",
        "self._oldest[0] < now - 1:",
        "self._oldest[0] < now:",
    ),
    _guard(
        "this-second-goes",
        "the current second is forgotten for space",
        "if self._oldest and self._oldest[0] < now - 1:",
        "if self._oldest:",
    ),
    _guard(
        "forgotten-too-early",
        "the last second of the TTL goes",
        "_forget_before(now - self._ttl)",
        "_forget_before(now - self._ttl + 1)",
    ),
    _guard(
        "never-forgotten",
        "what has expired is kept until space is short",
        "self._forget_before(now - self._ttl)",
        "pass",
    ),
    _guard(
        "forgotten-at-once",
        "a million entries go in one message, and the reactor stalls",
        "_FORGET_PER_MESSAGE = 8",
        "_FORGET_PER_MESSAGE = 10**9",
    ),
    _guard("released-too-slowly", "what is due to go never goes", "_FORGET_PER_MESSAGE = 8", "_FORGET_PER_MESSAGE = 0"),
    # One connection
    _link(
        "verified-in-bulk",
        "a segment is verified to its end before the first of it is handed over",
        "            link.verifier.verify(link.framer.feed(data), now, owner.hand_over, owner.rejected, control)\n",
        "            held = []\n"
        "            later = lambda *one: bool(held.append(one))\n"
        "            link.verifier.verify(link.framer.feed(data), now, later, owner.rejected, control)\n"
        "            for one in held:\n"
        "                if owner.hand_over(*one):\n"
        "                    link.receive_credit.finish(one[1])\n",
    ),
    _link(
        "credit-before-the-handler-ends",
        "work piles up",
        "now, owner.hand_over, ",
        "now, lambda *one: owner.hand_over(*one) or True, ",
    ),
    _link(
        "kept-behind-its-end",
        "a connection that has ended keeps what comes",
        "                self._link.framer.drop()\n",
        "                pass\n",
    ),
    _link("fault-behind-the-end", "a record is looked at behind the end", " and not link.verifier.ended:", ":"),
    _link(
        "ended-not-told-to-the-chain",
        "the rest of a segment is handed over",
        "self._link.verifier.ended = state is not CLOSING",
        "pass",
    ),
    _link(
        "not-dropping-after-close",
        "envelopes are handed over behind our CLOSE",
        "            self._link.verifier.dropping = True\n",
        "",
    ),
    _link(
        "draining-takes-new-work",
        "a stop never ends",
        "            self._link.verifier.shutting_down = True\n",
        "            pass\n",
        tests=("draining", "connection_flow"),
    ),
    _link(
        "drained-before-handlers-end",
        "handlers are cut off",
        _IDLE,
        "return self.outbox.buffered == 0",
        tests=("connection_flow", "draining"),
    ),
    _link(
        "drained-before-outcomes",
        "outcomes are cut off",
        _IDLE,
        "return self.in_flight == 0",
        tests=("connection_flow", "draining"),
    ),
    _link(
        "draining-forgotten-in-the-handshake",
        "who comes in while it stops is served",
        "        if self._draining is not None:\n            self.drain(",
        "        if False:\n            self.drain(",
        tests=("connection_flow", "draining", "protocol"),
    ),
    _link(
        "close-without-cause",
        "the record at fault is sent again for ever",
        "category, self._link.verifier.expected)",
        "category, None)",
    ),
    _link(
        "through-beyond-what-is-told",
        "rejections that had no room count as accepted",
        "rest[0][0] - 1 if rest else link.verifier.through",
        "link.verifier.through",
    ),
    _link(
        "close-loses-rejections",
        "what was handed over is told as not",
        "while len(link.verifier.rejected) > MAX_REJECTIONS:",
        "while False:",
    ),
    _link(
        "rejections-outrun-receipts",
        "rejections pile up without a bound",
        "(credit.told_messages, credit.told_bytes) if link.verifier.rejected else credit.tell()",
        "credit.tell()",
    ),
    _link(
        "transitions-unchecked", "what has ended begins again", "if state not in TRANSITIONS[self.state]:", "if False:"
    ),
    _link(
        "last-category-wins",
        "the cause of an end is overwritten",
        "        if self.category is None:\n            self.category = category\n",
        "        self.category = category\n",
    ),
    _link(
        "peers-payload-bound",
        "a peer chooses how much we take",
        "Framer(limits.max_payload_bytes,",
        "Framer(outcome.limits.max_payload_bytes,",
    ),
    _link(
        "peers-ttl",
        "a peer chooses how old its messages may be",
        "self._policy.allowed_kinds, limits.ttl_seconds,",
        "self._policy.allowed_kinds, outcome.limits.ttl_seconds,",
    ),
    _link(
        "peers-credit",
        "a peer chooses how much it may write",
        "ReceiveCredit(limits.messages, limits.bytes)",
        "ReceiveCredit(outcome.limits.messages, outcome.limits.bytes)",
    ),
    _link(
        "send-too-large",
        "what ends the connection is sent",
        "if payload > limits.max_payload_bytes or size > limits.bytes:",
        "if size > limits.bytes:",
    ),
    _link(
        "send-beyond-any-credit",
        "what can never be written blocks all behind it",
        "if payload > limits.max_payload_bytes or size > limits.bytes:",
        "if payload > limits.max_payload_bytes:",
    ),
    _link(
        "send-after-the-end",
        "a message is queued that nobody will ever settle",
        "if self.state is not OPEN or link is None:",
        "if link is None:",
    ),
    _link(
        "writes-behind-its-close",
        "a CLOSE is not the last record",
        "        if room <= 0 or link is None or self.state is not OPEN:\n",
        "        if room <= 0 or link is None:\n",
        (
            "        if self.state is OPEN:\n            if self.receipt_due:",
            "        if True:\n            if self.receipt_due:",
        ),
    ),
    _link(
        "reads-on-after-a-fault",
        "a peer that was at fault is read on",
        "            self.fail(fault.category)\n",
        "            pass\n",
    ),
    _link(
        "lying-credit-taken",
        "a lie is passed over",
        "            raise Fault(Category.MALFORMED)\n        try:",
        "            return\n        try:",
    ),
    # What is told of our messages
    _box("through-falls", "what is decided is undone", _THROUGH, "if not through < written:"),
    _box("through-beyond", "what was never sent is decided", _THROUGH, "if not self._through <= through:"),
    _box(
        "through-one-beyond",
        "the next record is decided before it is sent",
        _THROUGH,
        _THROUGH.replace("< written", "<= written"),
    ),
    _box("rejections-in-any-order", "one record is decided twice", _ASCENDING, "if not seq <= through:"),
    _box("rejections-twice", "one record is decided twice", _ASCENDING, "if not previous <= seq <= through:"),
    _box(
        "rejected-no-envelope",
        "a receipt rejects what is no envelope",
        "            if not categories.keys() <= {delivery.seq for delivery in to_decide}:\n",
        "            if False:\n",
    ),
    _box(
        "rejected-told-as-accepted",
        "a rejection is lost",
        "            if categories and delivery.seq in categories:\n",
        "            if False:\n",
    ),
    _box(
        "lost-told-as-rejected",
        "what may have been handed over is told as not",
        "(self.in_flight, self.queue), unknown)",
        "(self.in_flight, self.queue), lambda: Rejected(Category.CONNECTION_LOST, 'lost'))",
    ),
    _box(
        "lost-told-as-accepted",
        "nobody knows, and it says accepted",
        "(self.in_flight, self.queue), unknown)",
        "(self.in_flight, self.queue), lambda: None)",
    ),
    _box(
        "unclaimed-lost",
        "a rejection that nobody awaits is lost silently",
        "            self._on_unclaimed(delivery)\n",
        "            pass\n",
    ),
    _box(
        "own-credit-of-messages",
        "we write beyond our credit",
        _HAS_CREDIT,
        "if size > bytes_:",
    ),
    _box("own-credit-of-bytes", "we write beyond our credit", _HAS_CREDIT, "if messages <= 0:"),
    _box(
        "expired-written",
        "what was told to be too old is sent",
        "            if delivery.ts < oldest:\n                break\n",
        "",
    ),
    _box(
        "buffer-unbounded",
        "a peer that does not read fills our memory",
        "        if buffered > self._limit:\n",
        "        if False:\n",
    ),
    _box(
        "buffer-counts-no-overhead",
        "a million empty messages cost nothing",
        "len(delivery.payload) + FLAT_COST_BYTES",
        "len(delivery.payload)",
    ),
    # What is sent again
    _again(
        "again-to-another-instance",
        "a message is handed over twice",
        "            if delivery.seen_by not in (None, instance):\n",
        "            if False:\n",
    ),
    _again(
        "unsent-not-to-another-instance",
        "what was never written is told as unknown",
        "            if delivery.seen_by not in (None, instance):\n",
        "            if delivery.seen_by != instance:\n",
    ),
    _again(
        "written-and-forgotten",
        "what may have been handed over goes to any instance",
        "            delivery.seen_by = self._instance\n",
        "",
    ),
    _again(
        "refused-kept",
        "what ends every connection is sent again for ever",
        "            elif why is not None:\n",
        "            elif False:\n",
    ),
    _again(
        "cause-kept",
        "what ends every connection is sent again for ever",
        "            if delivery.seq == seq:\n",
        "            if False:\n",
    ),
    _again(
        "close-counts-as-seen",
        "what a CLOSE said was not handed over is told as unknown",
        "            else:\n                self.queue.appendleft(delivery)\n        if",
        "            else:\n"
        "                delivery.seen_by = self._instance\n"
        "                self.queue.appendleft(delivery)\n"
        "        if",
    ),
    _again(
        "shutting-down-is-the-end",
        "what can still be handed over is told as rejected",
        "        if category is Category.SHUTTING_DOWN:  # judged",
        "        if False:  # judged",
    ),
    _again(
        "replayed-at-first",
        "a nonce of somebody else's counts as ours",
        "        elif delivery.seen_by is None:\n",
        "        elif delivery.seen_by is None and category is not Category.REPLAYED:\n",
    ),
    _again(
        "replayed-again-unknown",
        "what was handed over is told as unknown",
        "        elif category is Category.REPLAYED:\n",
        "        elif False:\n",
    ),
    _again(
        "never-later",
        "a full guard or a slow clock ends what could still go",
        "        elif category in _AGAIN_LATER:\n",
        "        elif False:\n",
    ),
    _again(
        "always-later",
        "what will never be taken is sent until its time is over",
        "        elif category in _AGAIN_LATER:\n",
        "        elif True:\n",
    ),
    _again(
        "rejected-though-seen",
        "what may have been handed over is told as rejected",
        "        else:\n            self._settle(delivery, unknown())\n",
        "        else:\n            super()._rejected(delivery, category)\n",
    ),
    _again(
        "expired-though-seen",
        "what may have been handed over is told as expired unsent",
        "self._settle(delivery, _end(delivery, Category.EXPIRED, UNSENT))",
        "self._settle(delivery, Rejected(Category.EXPIRED, UNSENT))",
    ),
    _again(
        "given-up-though-seen",
        "what may have been handed over is told as unsent",
        'self._settle(delivery, _end(delivery, category, "unsent: the service was stopped"))',
        'self._settle(delivery, Rejected(category, "unsent: the service was stopped"))',
    ),
    _again(
        "through-of-the-last-connection", "an honest receipt counts as a lie", "        self._through = NO_SEQ\n", ""
    ),
    _again(
        "later-never-expires",
        "a message has no outcome",
        "for waiting in (self.queue, self.later):",
        "for waiting in (self.queue,):",
    ),
]
