"""Keys and handshake: what lets in who does not hold the secret, or who stands between two that do."""

from tests.mutants.mutant import MutantsOf

_signing = MutantsOf("core/signing", "signing", "architecture")
_keys = MutantsOf("core/key_schedule", "key_schedule", "frozen_vector", "vectors")
_shake = MutantsOf("core/handshake", "handshake", "vectors")

_SERVER_TAG = "        if not keys.server_finished.verifies(tag, _SERVER_LABEL, th):\n"
_CLIENT_TAG = "        if not keys.client_finished.verifies(proof, _CLIENT_LABEL, th, tag):\n"
_BEGINNING = 'update(lp(_TRANSCRIPT_LABEL) + lp(service.encode("ascii")))'
_FIELDS = "_ENDPOINT_LENGTH + endpoint + _MESSAGE_LENGTH + m1 + _MESSAGE_LENGTH + m2_unsigned"
_KEYS = "MacKey(okm[at : at + DIGEST_BYTES]) for at in range(0, len(okm), DIGEST_BYTES)"
_ENDS = "_ipv4(server_host), server_port, _ipv4(client_host), client_port"
_START = "start.startswith(head)):"

MUTANTS = [
    # One tag
    _signing("tag-unchecked", "any tag is right", "            return False\n", "            return True\n"),
    _signing(
        "tag-by-operator",
        "how long it takes tells how much of a guessed tag is right",
        "            mac.verify(tag)\n",
        "            if mac.finalize() != tag:\n                return False\n",
    ),
    _signing(
        "tag-prefix",
        "the beginning of a tag will do, even an empty one",
        "            mac.verify(tag)\n",
        "            if not mac.finalize().startswith(tag):\n                return False\n",
    ),
    _signing(
        "mac-pickled",
        "a key can be sent out of the process",
        'raise TypeError("a key cannot be pickled")',
        'return MacKey, (b"key",)',
    ),
    # Keys from the secret
    _keys("secret-short", "one byte of secret will do", "if len(secret) < MIN_SECRET_BYTES:", "if not secret:"),
    _keys(
        "secret-31-bytes", "the bound is one too low", "< MIN_SECRET_BYTES:", "< MIN_SECRET_BYTES - 1:", tests=("keys",)
    ),
    _keys(
        "key-id-without-service",
        "one key file joins two services",
        '_KEY_ID_LABEL + lp(service.encode("ascii"))',
        "_KEY_ID_LABEL",
    ),
    _keys("prk-in-repr", "a repr holds the key", '"<Prk (redacted)>"', 'f"<Prk {self._raw.hex()}>"'),
    _keys(
        "prk-pickled",
        "a key can be sent out of the process",
        'raise TypeError("a key cannot be pickled")',
        "return Prk, (bytes(32),)",
    ),
    _keys(
        "secret-in-traceback",
        "the frame of the error holds the secret, and some tracebacks print locals",
        "            del secret\n",
        "",
        tests=("key_schedule", "keys"),
    ),
    _keys(
        "labels-alike",
        "what is public (a key id) and what is secret come from one label",
        '_CONNECTION_LABEL = b"ipc_twisted/1 connection keys\\0"',
        "_CONNECTION_LABEL = _KEY_ID_LABEL",
    ),
    _keys(
        "keys-without-transcript",
        "every connection has the same keys",
        "_CONNECTION_LABEL + th, 4",
        "_CONNECTION_LABEL, 4",
        ('_CONNECTION_LABEL + th + b"\\1"', '_CONNECTION_LABEL + b"\\1"'),
    ),
    _keys("keys-all-one", "one key for all purposes", _KEYS, "MacKey(okm[:DIGEST_BYTES]) for _ in range(4)"),
    _keys(
        "finished-keys-alike",
        "a server's proof is a client's",
        _KEYS,
        _KEYS.replace("range(0, len(okm), DIGEST_BYTES)", "(0, 0, 64, 96)"),
    ),
    _keys(
        "record-keys-alike",
        "records can be reflected",
        _KEYS,
        _KEYS.replace("range(0, len(okm), DIGEST_BYTES)", "(0, 32, 64, 64)"),
    ),
    # What both must agree on
    _keys(
        "transcript-without-label",
        "it can be that of another protocol",
        _BEGINNING,
        _BEGINNING.replace("lp(_TRANSCRIPT_LABEL) + ", ""),
    ),
    _keys(
        "transcript-without-service",
        "another service's will do",
        _BEGINNING,
        "update(lp(_TRANSCRIPT_LABEL))",
    ),
    _keys(
        "transcript-without-endpoint",
        "a squatter can relay",
        _FIELDS,
        _FIELDS.replace("_ENDPOINT_LENGTH + endpoint + ", ""),
    ),
    _keys(
        "transcript-without-m1",
        "a client's nonce and limits are nowhere",
        _FIELDS,
        _FIELDS.replace(" + _MESSAGE_LENGTH + m1", ""),
    ),
    _keys(
        "transcript-without-m2",
        "a server's nonce and limits are nowhere",
        _FIELDS,
        _FIELDS.replace(" + _MESSAGE_LENGTH + m2_unsigned", ""),
    ),
    _keys(
        "transcript-without-lengths",
        "fields can be read in two ways",
        _FIELDS,
        "endpoint + m1 + m2_unsigned",
    ),
    _shake(
        "transcript-without-limits",
        "who stands between can change what the server takes",
        "th = transcript(self._service, self._endpoint.packed(), m1, unsigned[4:])",
        "th = transcript(self._service, self._endpoint.packed(), m1, unsigned[4:20] + unsigned[36:])",
        (
            "th = transcript(self._service, self._endpoint.packed(), self._m1[4:], unsigned)",
            "th = transcript(self._service, self._endpoint.packed(), self._m1[4:], unsigned[:16] + unsigned[32:])",
        ),
    ),
    _shake("endpoint-without-port", "a relay from another port", _ENDS, "_ipv4(server_host), 0, _ipv4(client_host), 0"),
    _shake("endpoint-without-client", "a relay for another client", _ENDS, 2 * "_ipv4(server_host), server_port, "),
    # Each byte of the messages
    _shake("message-length", "any length is waited for", _START, "start[4:].startswith(head[4:])):"),
    _shake(
        "message-length-late",
        "a wrong length is noticed only once the head is there",
        _START,
        "(len(head) < len(start) and start[4:].startswith(head[4:])) or start.startswith(head)):",
    ),
    _shake("magic", "another protocol is answered", _START, "(start[:4] + head[4:8] + start[8:]).startswith(head)):"),
    _shake("version", "any version is taken", _START, "(start[:8] + head[8:9] + start[9:]).startswith(head)):"),
    _shake(
        "version-lower",
        "an older version is taken",
        _START,
        "start.startswith(head) or (start[:8] + bytes([VERSION - 1]) + start[9:]).startswith(head)):",
    ),
    _shake(
        "message-type",
        "a message of another type is taken",
        _START,
        "(start[:9] + head[9:10] + start[10:]).startswith(head)):",
    ),
    _shake("flags", "flags that mean nothing yet are taken", _START, "(start[:10] + head[10:]).startswith(head)):"),
    _shake(
        "early-data-server",
        "bytes behind M1 before M2 are passed over",
        "            if rest:\n                raise Fault(Category.EARLY_DATA)\n",
        "",
    ),
    _shake(
        "early-data-client",
        "bytes behind M2 before M3 are passed over",
        "        if rest:\n            raise Fault(Category.EARLY_DATA)\n        unsigned",
        "        unsigned",
    ),
    # Who proves what
    _shake(
        "key-unknown",
        "a key id that is not known is answered under a key that is",
        "prk = self._prks.get(key_id)\n        if prk is None:\n",
        "prk = self._prks.get(key_id) or next(iter(self._prks.values()), None)\n        if prk is None:\n",
    ),
    _shake(
        "key-withdrawn",
        "who said M1 in time gets in under a key that has been withdrawn",
        "prk = self._prks.get(key_id)\n        if prk is None:  #",
        "prk = self._prks.get(key_id, self._known)\n        if prk is None:  #",
        ("        self._answered = key_id", "        self._known = prk\n        self._answered = key_id"),
        tests=("handshake", "rotation"),
    ),
    _shake("client-unproved", "whoever knows a key id gets in", _CLIENT_TAG, "        if False:\n"),
    _shake("server-unproved", "a squatter is taken for the server", _SERVER_TAG, "        if False:\n"),
    _shake(
        "server-proof-without-transcript",
        "a recorded proof convinces every client",
        "prk.server_tag(th, _SERVER_LABEL + th)",
        "prk.server_tag(b'', _SERVER_LABEL)",
        (_SERVER_TAG, _SERVER_TAG.replace("keys.s", "self._prk.connection_keys(b'').s").replace(", th)", ")")),
    ),
    _shake(
        "client-proof-without-servers",
        "M3 does not say which M2 it answers",
        "verifies(proof, _CLIENT_LABEL, th, tag)",
        "verifies(proof, _CLIENT_LABEL, th)",
        ("sign(_CLIENT_LABEL, th, tag)", "sign(_CLIENT_LABEL, th)"),
    ),
    _shake(
        "proofs-under-one-key",
        "roles are told apart by their label only",
        "keys.client_finished.verifies(",
        "keys.server_finished.verifies(",
        ("keys.client_finished.sign(", "keys.server_finished.sign("),
    ),
    _shake(
        "proofs-under-one-label",
        "roles are told apart by their key only",
        '_CLIENT_LABEL = b"client finished\\0"',
        '_CLIENT_LABEL = b"server finished\\0"',
    ),
    _shake(
        "one-key-both-ways",
        "records can be reflected",
        "limits_c, keys.server_to_client, keys.client_to_server)\n",
        "limits_c, keys.client_to_server, keys.client_to_server)\n",
        (
            "limits, keys.client_to_server, keys.server_to_client)\n",
            "limits, keys.client_to_server, keys.client_to_server)\n",
        ),
    ),
    _shake(
        "directions-swapped",
        "each side signs with the key of the other direction",
        "limits_c, keys.server_to_client, keys.client_to_server)\n",
        "limits_c, keys.client_to_server, keys.server_to_client)\n",
        (
            "limits, keys.client_to_server, keys.server_to_client)\n",
            "limits, limits_c, keys.server_to_client, keys.client_to_server)\n",
        ),
    ),
    _shake(
        "nonces-alike",
        "our own nonce is taken from the peer",
        "if bytes_eq(unsigned[-NONCE_BYTES:], self._nonce):",
        "if False:",
    ),
    _shake(
        "self-connect",
        "a client talks to itself",
        "if (server_host, server_port) == (client_host, client_port):",
        "if False:",
    ),
]
