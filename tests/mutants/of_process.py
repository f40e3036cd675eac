"""Connections as the operating system has them: strangers, deadlines, descriptors, forks, logs, stopping."""

from tests.mutants.mutant import MutantsOf

_factory = MutantsOf(
    "factory", "factory", "protocol_deadlines", "protocol_ends", "protocol", "dialler", "categories", "rotation", "link"
)
_endpoints = MutantsOf("endpoints", "service")
_strangers = MutantsOf("strangers", "strangers_places", "factory")
_deadline = MutantsOf("deadline", "deadline")
_watch = MutantsOf("peer_watch", "peer_watch")
_drain = MutantsOf("draining", "draining", "service")
_protocol = MutantsOf("protocol", "protocol", "protocol_ends", "protocol_deadlines", "factory", "link", "categories")
_service = MutantsOf("service", "categories", "service")
_nonce = MutantsOf("nonces", "nonces")
_origin = MutantsOf("origin", "origin")
_log = MutantsOf("log_limit", "log_limit")

_OVERDUE = "elif late > self._late and not self._excused:"
_LOST_CLOCK = "if self.guard.floor > now + 1:"
_RECEIVE = "            self._connection.receive_data(data, self._shared.now())\n"
_EVICT = "next(silent, oldest[0]).abandon(Category.EVICTED)"
_OLDEST = "list(islice(self._silent, min(_LOOKED_AT, len(self._silent) - 1))) or list(islice(self._named, 1))"

MUTANTS = [
    # Strangers
    _strangers(
        "strangers-unbounded",
        "strangers take all there is",
        "        if len(self._silent) + len(self._named) > self._places:\n",
        "        if False:\n",
    ),
    _strangers(
        "strangers-one-more",
        "one more than configured",
        "if len(self._silent) + len(self._named) > self._places:",
        "if len(self._silent) + len(self._named) > self._places + 1:",
    ),
    _strangers(
        "newcomer-evicted",
        "who holds the places keeps others out",
        _EVICT,
        "next(reversed(self._silent)).abandon(Category.EVICTED)",
    ),
    _strangers(
        "spoken-evicted",
        "a flood pushes honest clients out before they are read",
        "if not _has_spoken(protocol))",
        "if True)",
    ),
    _strangers(
        "all-are-asked", "a newcomer costs as much as there are strangers", "_LOOKED_AT = 16", "_LOOKED_AT = 10**6"
    ),
    _strangers(
        "named-evicted-first",
        "who knows no key pushes out who does",
        _OLDEST,
        "list(islice(self._named, 1)) or list(islice(self._silent, _LOOKED_AT))",
    ),
    _strangers(
        "named-unbounded",
        "who has seen a key id keeps all others out",
        "        if len(self._named) > max(1, self._places // 2):\n",
        "        if False:\n",
    ),
    _strangers("named-hold-all", "who has seen a key id holds all places", "self._places // 2", "self._places"),
    _strangers(
        "named-newcomer-evicted",
        "who has seen a key id holds half of the places for ever",
        "            oldest = list(islice(self._named, _LOOKED_AT))\n",
        "            oldest = [*reversed(self._named)]\n",
    ),
    _factory(
        "authenticated-evicted",
        "who has proved itself is evicted as a stranger",
        "        self.pending.discard(protocol)\n        full",
        "        full",
        tests=("factory", "strangers_places", "strangers"),
    ),
    # Places and descriptors
    _factory("connections-unbounded", "key holders take all descriptors", "        if full:\n", "        if False:\n"),
    _factory(
        "connections-one-more",
        "one more than configured",
        "len(self.connections) >= self.config.limits",
        "len(self.connections) > self.config.limits",
    ),
    _factory(
        "descriptor-budget",
        "a burst of connects uses the descriptors up",
        "        if len(self.transports) >= self._most_transports:\n",
        "        if False:\n",
    ),
    _factory(
        "descriptors-unspared",
        "a burst of connects uses up what was to spare",
        "config.descriptors - SPARE_DESCRIPTORS // 2",
        "config.descriptors + 1",
    ),
    _endpoints(
        "accepts-at-first",
        "strangers turn over between two looks at them",
        "        cast(Any, port).numberAccepts = ACCEPTS_PER_TURN\n",
        "",
    ),
    _factory(
        "accepts-more-and-more",
        "strangers turn over between two looks at them",
        "            port.numberAccepts = 0  #",
        "            pass  #",
        tests=("service",),
    ),
    _service("descriptors-at-start", "a server starts that will run out", "needed > soft:", "False:"),
    # Keys and clock
    _factory(
        "withdrawn-goes-on",
        "connections outlive the key they were made with",
        "            if protocol.key_id not in kept:\n",
        "            if False:\n",
    ),
    _factory(
        "withdrawn-still-accepted", "a key that was withdrawn is accepted", "        self._prks.clear()", "        pass"
    ),
    _factory(
        "pending-keep-their-keys",
        "a handshake that has begun ends under a withdrawn key",
        "        self._prks.clear()  # the one that pending handshakes look into, too\n"
        "        self._prks.update(kept)\n",
        "        self._prks = kept\n",
    ),
    _factory("clock-stepped-unnoticed", "after a step of the clock all is rejected", _LOST_CLOCK, "if False:"),
    _factory(
        "clock-stepped-at-once", "a clock that jitters ends all connections", _LOST_CLOCK, "if self.guard.floor > now:"
    ),
    _factory(
        "clock-stepped-keeps-guard",
        "a new beginning with the old memory",
        "            self.guard = self._new_guard()\n            for",
        "            for",
    ),
    _factory(
        "clock-stepped-keeps-connections",
        "old keys meet a guard without memory",
        "                protocol.end(Category.CLOCK_STEPPED)\n",
        "                pass\n",
    ),
    _factory(
        "clock-stepped-keeps-strangers",
        "a handshake under the old guard ends under the new one",
        "in list(self.transports):",
        "in list(self.connections):",
    ),
    _factory(
        "instance-constant",
        "a client takes a restarted server for the same",
        "self.random(INSTANCE_BYTES)",
        "bytes(INSTANCE_BYTES)",
        tests=("protocol", "link", "resend", "client_service"),
    ),
    _factory(
        "server-nonce-constant",
        "a recorded client is let in again",
        "            Endpoint(host.host, host.port, peer.host, peer.port),\n            self.random(NONCE_BYTES),",
        "            Endpoint(host.host, host.port, peer.host, peer.port),\n            bytes(NONCE_BYTES),",
        tests=("factory", "dialler", "link", "strangers"),
    ),
    _factory(
        "client-nonce-constant",
        "a recorded server convinces a client",
        "what the socket says\n            self.random(NONCE_BYTES),",
        "what the socket says\n            bytes(NONCE_BYTES),",
        tests=("dialler", "factory", "link", "strangers"),
    ),
    _factory(
        "endpoint-of-the-socket",
        "who redirects a connection is not noticed",
        "Endpoint(LOOPBACK, self._port, own.host, own.port)",
        "Endpoint(protocol.transport.getPeer().host, protocol.transport.getPeer().port, own.host, own.port)",
    ),
    # Deadlines
    _deadline("never-late", "what this process slept through is held against the peer", _OVERDUE, "elif False:"),
    _deadline(
        "excused-for-ever",
        "where every turn takes long no deadline is ever missed",
        _OVERDUE,
        "elif late > self._late:",
    ),
    _deadline(
        "never-missed",
        "a deadline begins anew instead of ending",
        "            self.due = None\n            self._on_missed()\n",
        "            self.start()\n",
    ),
    _deadline(
        "deadlines-of-the-first",
        "only the first of many strangers ever has to go",
        "is due before\n        self._wait()\n",
        "is due before\n",
        tests=("deadline", "protocol"),
    ),
    _deadline(
        "deadlines-excused-for-ever",
        "where every turn takes long no stranger ever has to go",
        "if late and not again:",
        "if late:",
    ),
    _deadline(
        "deadlines-of-another-time",
        "where the clock was set back strangers stay for as long",
        "self._call is not None and self._looks_at > due:",
        "False:",
    ),
    _factory("handshake-untimed", "a stranger stays for ever", "        self._handshakes.start(protocol)\n", ""),
    _protocol(
        "handshake-extended-by-bytes",
        "a byte now and then keeps a stranger's place",
        _RECEIVE,
        "            if not self.authenticated:\n                self._shared._handshakes.start(self)\n" + _RECEIVE,
    ),
    _protocol(
        "frame-untimed",
        "a record that never ends holds its bytes for ever",
        "            self._frame.start()\n",
        "            pass\n",
    ),
    _protocol(
        "frame-extended-by-bytes",
        "a byte now and then keeps a record open",
        "        if receiving != self._frame_timed:\n",
        "        if True:\n",
    ),
    _protocol(
        "frame-extended-by-its-payload",
        "a byte now and then keeps a record open",
        "receive_part(data):  # as most segments of a large record\n",
        "receive_part(data):\n            self._frame and self._frame.start()\n",
        tests=("protocol_deadlines",),
    ),
    _protocol(
        "early-once",
        "what is sent much of waits in every later turn, though the other side has nothing to do",
        "        self._unflushed, self._early_at = 0, EARLY_BYTES\n",
        "        self._unflushed = 0\n",
    ),
    _protocol(
        "early-within-a-segment",
        "a handler's answers are written before the receipt for what they answer",
        "        if self._unflushed >= self._early_at and not self._busy:\n",
        "        if self._unflushed >= self._early_at:\n",
    ),
    _protocol(
        "frame-timeout-ignored",
        "a record that never ends holds its bytes for ever",
        "        self._connection.fail(Category.FRAME_TIMEOUT)\n",
        "",
    ),
    _protocol(
        "linger-untimed", "who never closes keeps a connection that has ended", "            self._linger.start()\n", ""
    ),
    _protocol(
        "strangers-flushed",
        "who never reads keeps the socket of a connection that is dead",
        "        if state is DEAD:\n            self.transport.abortConnection()\n",
        "        if state is DEAD:\n            self.transport.loseConnection()\n",
    ),
    _protocol(
        "written-past-what-waits",
        "a record is written into the middle of another one",
        "if size <= WRITE_BYTES and not (transport.dataBuffer or transport._tempDataLen):",
        "if size <= WRITE_BYTES:",
    ),
    _protocol(
        "short-write-not-followed-up",
        "the rest of a record is lost",
        "if sent != len(left):",
        "if sent != len(left) == size:",
    ),
    _protocol(
        "not-watched",
        "who reads nothing and says nothing stays for ever",
        "                self._watch.wrote(size)\n",
        "                pass\n",
        tests=("protocol", "peer_watch", "categories", "link"),
    ),
    _watch(
        "stall-never",
        "a peer that reads nothing holds our memory for ever",
        "        if self._still == _LOOKS:\n",
        "        if False:\n",
    ),
    _watch("stall-at-twice-the-time", "who stops behind a look has twice the time", "_LOOKS = 4", "_LOOKS = 1"),
    _watch(
        "stall-though-it-moves",
        "a slow reader is cut off",
        "self._still + 1 if drained == self._drained else 0",
        "self._still + 1",
    ),
    _watch(
        "receipts-never",
        "a peer that says nothing holds our messages for ever",
        "        if left <= 0:\n            self._on_missed(Category.RECEIPT_TIMEOUT)\n",
        "        if left <= 0:\n            pass\n",
    ),
    _watch(
        "receipts-of-the-newest",
        "new messages keep the deadline of old ones away",
        "self._in_flight[0].written_at",
        "self._in_flight[-1].written_at",
    ),
    # Handlers
    _protocol(
        "handler-exits",
        "sys.exit() in a handler ends the connections of others",
        "        except BaseException:",
        "        except Exception:",
        tests=("mistakes", "protocol"),
    ),
    _protocol(
        "unproved-handed-out",
        "a connection is given out before the server has proved itself",
        "        if self._connection.peer is not None:\n            waiting",
        "        if True:\n            waiting",
    ),
    # Forks and threads
    _nonce(
        "fork-same-nonces",
        "parent and child sign the same nonces",
        "os.register_at_fork(after_in_child=process_nonces.renew)\n",
        "",
    ),
    _nonce("nonce-prefix-short", "two processes have the same prefix", "_PREFIX_BYTES = 12", "_PREFIX_BYTES = 4"),
    _nonce(
        "nonce-constant",
        "one nonce for all",
        "map(repeat, blocks, repeat(256))",
        "map(repeat, repeat(self.prefix), repeat(256))",
    ),
    _nonce("nonce-block-twice", "a nonce for each of two messages", "repeat(256))), cycle", "repeat(512))), cycle"),
    _origin(
        "plain-but-for-trace-id",
        "a message that its receiver must end the connection for",
        "plain = trace_id is None and ",
        "plain = ",
    ),
    _origin("plain-always", "the same", "plain = trace_id is None and", "plain = True or"),
    _origin("any-kind-again", "the same", "kind is self._kind and ts == self._ts:", "self._kind and ts == self._ts:"),
    _origin("any-time-again", "the same", "kind is self._kind and ts == self._ts:", "kind is self._kind:"),
    _origin(
        "kind-good-unchecked",
        "the same",
        "            header = encode_header(fields)\n            self._kind, self._ts = kind, ts\n",
        "            self._kind, self._ts = kind, ts\n            header = encode_header(fields)\n",
    ),
    _origin(
        "payload-of-any-type",
        "what changes under us is signed",
        "        if type(payload_bytes) is not bytes:\n",
        "        if False:\n",
    ),
    _origin(
        "fork-sends",
        "a child says something under its parent's keys",
        "        if self._process is not process_nonces.prefix:",
        "        if False:",
    ),
    _origin(
        "fork-is-here",
        "a child writes what its parent had queued",
        "return self._process is process_nonces.prefix",
        "return True",
        tests=("origin", "protocol"),
    ),
    _origin(
        "thread-sends",
        "two threads at once in one connection",
        "        if self._thread != get_ident():\n",
        "        if False:\n",
    ),
    _protocol(
        "fork-writes",
        "a child writes what its parent had queued",
        "        if data and self._origin.is_here:\n",
        "        if data:\n",
        tests=("nonces", "protocol", "link"),
    ),
    # Logs
    _log("log-unbounded", "a stranger fills the disk", "        if written >= LINES:\n", "        if False:\n"),
    _log(
        "log-silent-about-more",
        "nobody learns how many lines were left out",
        "began, written, left_out + 1",
        "began, written, left_out",
    ),
    _log(
        "log-for-ever-silent",
        "after a burst nothing is said any more",
        "        if not 0 <= now - began < SECONDS:  # below 0: the clock was set back\n",
        "        if False:\n",
    ),
    _log(
        "log-one-for-all",
        "a flood of one kind hides all others",
        "self._windows.get(label, ",
        'self._windows.get(label := "", ',
        tests=("log_limit",),
    ),
    _factory(
        "warnings-unbounded",
        "a stranger fills the disk",
        "left_out = self._limit.admit((message, category))",
        "left_out: int | None = 0",
    ),
    _factory(
        "handler-failures-unbounded",
        "a peer that makes a handler fail fills the disk",
        'left_out = self._limit.admit(f"handler {failure.type}")',
        "left_out: int | None = 0",
        tests=("factory", "link", "categories", "mistakes"),
    ),
    _factory(
        "kind-unescaped",
        "a peer writes lines of our log",
        "rejected an envelope from {peer}: {category} kind={kind!r}",
        "rejected an envelope from {peer}: {category} kind={kind}",
        tests=("factory", "link", "twistd"),
    ),
    _factory(
        "trace-id-unescaped",
        "a peer writes lines of our log",
        '{category} kind={kind!r} trace_id={trace_id!r}",\n            event="envelope_rejected"',
        '{category} kind={kind!r} trace_id={trace_id}",\n            event="envelope_rejected"',
        tests=("factory", "link", "twistd"),
    ),
    _factory(
        "failed-trace-id-unescaped",
        "a peer writes lines of our log",
        'a handler failed: trace_id={trace_id!r}"',
        'a handler failed: trace_id={trace_id}"',
        tests=("factory", "link", "twistd"),
    ),
    # Stopping
    _drain(
        "stop-takes-new-work",
        "a stop never ends",
        "        connection.drain(Category.SHUTTING_DOWN)\n",
        "        pass\n",
    ),
    _drain(
        "stop-before-handlers-end", "handlers are cut off", "ended([*closed, handlers], clock", "ended(closed, clock"
    ),
    _drain(
        "stop-waits-for-strangers",
        "a stranger holds a stop up",
        "    strangers = clock.callLater(last, _abandon_strangers, connections)\n",
        "    strangers = clock.callLater(last, list)\n",
    ),
    _drain(
        "stop-cuts-authenticated",
        "who is let in is cut off as a stranger",
        "        if not connection.authenticated:\n",
        "        if True:\n",
    ),
    _drain(
        "stop-without-close",
        "who is not done is cut off without a word",
        "        connection.end(Category.SHUTTING_DOWN)\n",
        "        pass\n",
    ),
    _drain(
        "stop-at-once",
        "nothing is let end",
        "ended([*closed, handlers], clock, seconds - last)",
        "ended([*closed, handlers], clock, 0)",
    ),
    _drain(
        "stop-without-end",
        "a stop takes longer than it may",
        "    await ended((connection.wait_closed() for connection in connections), clock, last)\n",
        "    await ended((connection.wait_closed() for connection in connections), clock, 3600)\n",
    ),
]
