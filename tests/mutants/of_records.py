"""The verifier chain and what stands around it: what lets a record through that should not be, or not any more."""

from tests.mutants.mutant import MutantsOf

_frame = MutantsOf("core/framing", "framing", "verifier", "vectors")
_chain = MutantsOf("core/verifier", "verifier", "connection_ends", "vectors")
_codec = MutantsOf("core/codec", "codec", "vectors")
_field = MutantsOf("core/envelope", "codec", "vectors")
_flow = MutantsOf("core/flow", "flow", "connection_credit", "connection_flow")

_MAC = "            if type(signed) is memoryview:  # 4\n"
_VERIFY = "                mac.verify(sig)\n"
_SEQ = "if seq != self.expected:  # 5"
_DECODE_FIRST = (
    "            try:\n"
    "                decode(header) if type_ == ENVELOPE else decode_control(type_, header, payload)\n"
    "            except Exception:\n"
    "                raise Fault(Category.MALFORMED) from None\n"
)
_CREDIT = (
    "            if credit.used_messages >= credit.told_messages or credit.used_bytes + size > credit.told_bytes:\n"
)
_KIND = "            if kind not in allowed_kinds:  # 7\n"
_KIND_AND_STATE = (
    _KIND
    + "                category: Category | None = Category.KIND_NOT_ALLOWED\n"
    + "            elif self.shutting_down:\n"
    + "                category = Category.SHUTTING_DOWN\n"
)
_OLD = "            elif ts < oldest:  # 8\n"
_TTL_AND_NONCE = (
    _OLD
    + "                category = Category.EXPIRED\n"
    + "            elif ts > newest:\n"
    + "                category = Category.NOT_YET_VALID\n"
    + "            else:\n"
    + "                category = admit(nonce, ts, now)  # 9\n"
)
_THROUGH = "            self.through = seq\n"
_LENGTHS = "if not 0 <= payload_len <= max_payload:"
_PAYLOAD = "return Category.PAYLOAD_TOO_LARGE if payload_len > self._max_payload else None"

MUTANTS = [
    _frame(
        "kept-behind-the-end",
        "what begins behind the end of a connection is kept",
        "            if offset < data_len and self.fault is None and not self._dropped:\n",
        "            if offset < data_len and self.fault is None:\n",
    ),
    _frame(
        "end-taken-for-a-part",
        "a record is never seen to end, and the next one is taken for its payload",
        "or len(data) >= self._need - self._have:",
        "or len(data) > self._need - self._have:",
    ),
    _frame(
        "parts-taken-behind-the-end",
        "a connection that has ended keeps what comes",
        "        self._stage = self._mac = None\n",
        "        self._stage = None\n",
    ),
    _frame(
        "tiny-parts-kept-apart",
        "an object for each byte of a payload",
        "            return False\n        self._keep(data)\n",
        "            return False\n        self._have += len(data)\n        self._gather()\n        self._add(data)\n",
        tests=("framing_cost",),
    ),
    # 2 and 3: lengths
    _frame(
        "length-unbounded",
        "a record beyond MAX_LENGTH is refused only behind its head",
        "return Category.PAYLOAD_TOO_LARGE if length > self.MAX_LENGTH else None",
        "return None",
    ),
    _frame(
        "length-bound-one-higher",
        "the bound is one too high",
        "MIN_LENGTH + MAX_HEADER_BYTES + max_payload_bytes",
        "MIN_LENGTH + MAX_HEADER_BYTES + max_payload_bytes + 1",
    ),
    _frame(
        "length-too-short",
        "a record without room for its head is waited for",
        "        if length < MIN_LENGTH:\n",
        "        if length < 0:\n",
    ),
    _frame("payload-bound-whole", "any payload in one segment", _LENGTHS, "if not 0 <= payload_len:"),
    _frame(
        "payload-negative-whole", "a header reaches beyond its record", _LENGTHS, "if not payload_len <= max_payload:"
    ),
    _frame("payload-bound-in-parts", "any payload in several segments", _PAYLOAD, "return None"),
    _frame("payload-bound-one-higher", "the bound is one too high", _PAYLOAD, _PAYLOAD.replace(" else", " + 1 else")),
    _frame(
        "payload-negative-in-parts",
        "a header reaches beyond its record",
        "        if payload_len < 0:\n            return Category.MALFORMED\n",
        "",
    ),
    _frame(
        "body-before-its-bounds",
        "the length of the payload is judged only once the header is there",
        "        self.fault = self._payload_fault(length - MIN_LENGTH - header_len)\n",
        "",
        (
            "        self._mac = mac = self._new_mac()\n",
            "        length, *_, header_len = HEAD.unpack(self._head)\n"
            "        self.fault = self._payload_fault(length - MIN_LENGTH - header_len)\n"
            "        if self.fault is not None:\n            return\n"
            "        self._mac = mac = self._new_mac()\n",
        ),
    ),
    _frame(
        "type-unsigned-in-parts",
        "the MAC of a record that arrives in parts says nothing of its type",
        "memoryview(self._head)[BODY_AT:]",
        "memoryview(self._head)[BODY_AT + 1:]",
    ),
    # 1 and 4: state, signature
    _chain(
        "ended-within-a-segment",
        "who ends a connection in a handler is handed more",
        "            if self.ended:  # 1\n                return\n",
        "",
    ),
    _chain("signature-unchecked", "any signature is right", _VERIFY, "                pass\n"),
    _chain(
        "signature-by-operator",
        "how long it takes tells how much of a guessed tag is right",
        _VERIFY,
        "                if mac.finalize() != sig:\n                    raise InvalidSignature\n",
        tests=("architecture",),
    ),
    _chain(
        "signature-prefix",
        "half of a signature will do",
        _VERIFY,
        "                if mac.finalize()[:16] != sig[:16]:\n                    raise InvalidSignature\n",
    ),
    _chain(
        "signature-of-parts-unchecked",
        "any signature is right where a record arrives in parts",
        _VERIFY,
        "                if type(signed) is memoryview:\n                    mac.verify(sig)\n",
        tests=("verifier", "connection_ends", "vectors", "contract_cases"),
    ),
    _chain(
        "signature-missing-passes",
        "a record without a signature is let through",
        "raise Fault(Category.SIGNATURE_INVALID if any(sig) else Category.SIGNATURE_MISSING) from None",
        "if any(sig):\n                    raise Fault(Category.SIGNATURE_INVALID) from None",
    ),
    _chain("signature-missing-told-wrong", "a forged one is told as missing", "if any(sig) else", "if all(sig) else"),
    _chain(
        "sequence-before-signature",
        "who has no key learns the sequence",
        _MAC,
        "            if seq != self.expected:\n"
        "                raise Fault(Category.REPLAYED if seq < self.expected else Category.SEQUENCE_GAP)\n" + _MAC,
    ),
    _chain("decode-before-signature", "who has no key reaches a parser", _MAC, _DECODE_FIRST + _MAC),
    # 5: sequence, credit
    _chain("sequence-higher", "a record can be taken out of the stream", _SEQ, "if seq < self.expected:"),
    _chain("sequence-lower", "the same bytes are taken twice", _SEQ, "if seq > self.expected:"),
    _chain("sequence-unchecked", "records come in any order", _SEQ, "if False:"),
    _chain(
        "sequence-told-wrong",
        "a gap is told as a replay",
        "Category.REPLAYED if seq < self.expected else Category.SEQUENCE_GAP",
        "Category.REPLAYED",
    ),
    _chain(
        "expected-too-early",
        "a lying receipt is told with the sequence number behind it",
        "                take_control(control)\n                self.expected = seq + 1\n",
        "                self.expected = seq + 1\n                take_control(control)\n",
    ),
    _chain("decode-before-credit", "the parser is reached beyond the credit", _CREDIT, _DECODE_FIRST + _CREDIT),
    _chain(
        "credit-of-messages",
        "any number of messages",
        _CREDIT,
        "            if credit.used_bytes + size > credit.told_bytes:\n",
    ),
    _chain("credit-one-more", "one message beyond the credit", _CREDIT, _CREDIT.replace(">=", ">")),
    _chain(
        "credit-of-bytes",
        "any number of bytes",
        _CREDIT,
        "            if credit.used_messages >= credit.told_messages:\n",
    ),
    _chain("credit-of-bytes-late", "one record beyond the bytes", _CREDIT, _CREDIT.replace(" + size > ", " > ")),
    _chain("messages-uncounted", "credit is never used up", "            credit.used_messages += 1\n", ""),
    _chain("bytes-uncounted", "credit is never used up", "            credit.used_bytes += size\n", ""),
    # 6: decode
    _chain(
        "decode-raises",
        "bad UTF-8 is a traceback in the log instead of a fault",
        "            except Exception:  # also UnicodeDecodeError",
        '            except __import__("msgspec").MsgspecError:  # also UnicodeDecodeError',
    ),
    _codec("control-with-payload", "bytes that nobody looks at are taken", "    if payload:\n", "    if False:\n"),
    _codec(
        "unknown-record-type",
        "a type that does not exist is read as a close",
        "    if type_ not in (RECEIPT, CLOSE):\n",
        "    if False:\n",
    ),
    _codec(
        "close-category",
        "a close tells what no close can",
        "    if isinstance(record, Close) and record.category not in TOLD_BY_CLOSE:\n",
        "    if False:\n",
    ),
    _codec(
        "receipt-category",
        "a receipt tells what no receipt can",
        "    if not TOLD_BY_RECEIPT.issuperset(category for _, category in record.rejected):\n",
        "    if False:\n",
    ),
    _codec(
        "rejections-unbounded",
        "more rejections in a receipt than may be",
        "Annotated[list[tuple[_U64, Category]], Meta(max_length=MAX_REJECTIONS)]",
        "list[tuple[_U64, Category]]",
    ),
    _codec("counts-negative", "numbers below zero are taken", "_U64 = Annotated[int, Meta(ge=0)]", "_U64 = int"),
    _codec("through-negative", "through is below none", "Annotated[int, Meta(ge=NO_SEQ)]", "int"),
    _codec(
        "sent-header-unchecked",
        "what is sent is not what was given",
        "good = decode_header(header) == fields",
        "good = decode_header(header) is not None",
    ),
    _codec(
        "sent-header-unbounded", "a header that no receiver takes", "if len(header) > MAX_HEADER_BYTES:", "if False:"
    ),
    _field("ts-unbounded", "any number is a time", "Seconds = Annotated[int, Meta(ge=0, lt=2**53)]", "Seconds = int"),
    _field("ts-float", "a fraction is a time", "Seconds = Annotated[int, ", "Seconds = Annotated[float, "),
    _field(
        "nonce-empty", "an empty nonce", "Nonce = Annotated[str, Meta(min_length=1, ", "Nonce = Annotated[str, Meta("
    ),
    _field("nonce-long", "a nonce of any length fills the guard", ", max_length=64)]\nKind", ")]\nKind"),
    _field("kind-long", "a kind of any length", "min_length=1, max_length=128", "min_length=1"),
    _field("name-long", "a trace_id, reply_to or target of any length", "min_length=1, max_length=256", "min_length=1"),
    _field(
        "names-many", "any number of targets", "Annotated[list[Name], Meta(min_length=1, max_length=64)]", "list[Name]"
    ),
    _field("headers-many", "any number of headers", "Annotated[dict[str, str], Meta(max_length=64)]", "dict[str, str]"),
    # After our CLOSE
    _chain(
        "dropping",
        "envelopes are handed over behind our CLOSE, which said that none would be",
        "            if self.dropping:\n                continue\n",
        "",
    ),
    # 7: kind, shutting down
    _chain("kind-unchecked", "any kind is handed over", _KIND, "            if False:\n"),
    _chain("kind-case", "a kind in capitals", _KIND, _KIND.replace("kind not", "kind.lower() not")),
    _chain("kind-blanks", "a kind with blanks around it", _KIND, _KIND.replace("kind not", "kind.strip() not")),
    _chain(
        "kind-prefix",
        "a kind that begins as an allowed one",
        _KIND,
        "            if not kind.startswith(tuple(allowed_kinds)):\n",
    ),
    _chain("shutting-down-ignored", "new work while it stops", "elif self.shutting_down:", "elif False:"),
    _chain(
        "shutting-down-before-kind",
        "who would never be served is told to come again",
        _KIND,
        "            if self.shutting_down:\n                category = Category.SHUTTING_DOWN\n"
        + _KIND.replace("            if", "            elif"),
    ),
    _chain(
        "ttl-before-kind",
        "the order of the checks",
        _KIND,
        "            if ts < oldest:\n                category = Category.EXPIRED\n"
        + _KIND.replace("            if", "            elif"),
    ),
    _chain(
        "ttl-before-shutting-down",
        "the order of the checks",
        "            elif self.shutting_down:\n",
        "            elif ts < oldest:\n                category = Category.EXPIRED\n"
        "            elif self.shutting_down:\n",
    ),
    # 8: time to live
    _chain("ttl-old-unchecked", "any old message", _OLD, "            elif False:\n"),
    _chain("ttl-old-one-more", "a second too old", _OLD, "            elif ts < oldest - 1:\n"),
    _chain("ttl-old-one-less", "the bound is not inclusive", _OLD, "            elif ts <= oldest:\n"),
    _chain(
        "ttl-future-unchecked", "any future message", "            elif ts > newest:\n", "            elif False:\n"
    ),
    _chain("ttl-future-one-more", "a second too early", "elif ts > newest:", "elif ts > newest + 1:"),
    _chain("ttl-future-one-less", "the bound is not inclusive", "elif ts > newest:", "elif ts >= newest:"),
    # 9: nonce
    _chain(
        "nonce-unchecked", "a message is handed over twice", "category = admit(nonce, ts, now)  # 9", "category = None"
    ),
    _chain(
        "nonce-before-ttl",
        "what is rejected for its time fills the guard",
        _TTL_AND_NONCE,
        "            else:\n"
        "                category = admit(nonce, ts, now)\n"
        "                if ts < oldest:\n"
        "                    category = Category.EXPIRED\n"
        "                elif ts > newest:\n"
        "                    category = Category.NOT_YET_VALID\n",
    ),
    _chain(
        "nonce-before-kind",
        "what is rejected for its kind fills the guard",
        _KIND,
        "            admit(nonce, ts, now) if kind not in allowed_kinds else None\n" + _KIND,
    ),
    # What the sender is told of it
    _chain(
        "rejection-untold",
        "what was rejected is told as accepted",
        "                self.rejected.append((seq, category))\n",
        "",
    ),
    _chain("through-untold", "nothing is ever told as decided", _THROUGH, ""),
    _chain(
        "through-too-early",
        "what was only dropped is told as accepted",
        "            if self.dropping:\n",
        _THROUGH + "            if self.dropping:\n",
    ),
    _chain(
        "rejection-keeps-credit",
        "rejections use the credit up for ever",
        "                on_rejected(Rejection(category, kind, trace_id))\n",
        "                on_rejected(Rejection(category, kind, trace_id))\n                continue\n",
    ),
    # Credit
    _flow(
        "granted-messages-fall",
        "granted messages are taken back",
        "if messages < self.messages or bytes_ < self.bytes:",
        "if bytes_ < self.bytes:",
    ),
    _flow(
        "granted-bytes-fall",
        "granted bytes are taken back",
        "if messages < self.messages or bytes_ < self.bytes:",
        "if messages < self.messages:",
    ),
    _flow(
        "messages-back-at-receipt",
        "credit comes back before handlers end, so a peer can pile up work",
        "self.told_messages = self._window_messages + self.finished_messages",
        "self.told_messages = self._window_messages + self.used_messages",
    ),
    _flow(
        "bytes-back-at-receipt",
        "credit comes back before handlers end, so a peer can pile up payloads",
        "self.told_bytes = self._window_bytes + self.finished_bytes",
        "self.told_bytes = self._window_bytes + self.used_bytes",
    ),
    _flow(
        "can-never-fit",
        "a message that can never be sent blocks all behind it",
        "return size <= self._window_bytes or self.used_bytes + size <= self.bytes",
        "return True",
    ),
]
