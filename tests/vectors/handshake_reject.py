"""Handshakes that one side must refuse, as scripts of what it sends and receives."""

from __future__ import annotations

from typing import Any

from tests.vectors.common import (
    CLIENT,
    INSTANCE,
    KEYS,
    LIMITS,
    M1_MESSAGE,
    M2_HEAD,
    NONCE_C,
    NONCE_S,
    OTHER_SECRET,
    PRK,
    SECRET,
    SERVER,
    SERVICE,
    TAG_C,
    TAG_S,
    TH,
    Case,
    address,
    fields,
    named_limits,
    signed,
)
from tests.wire_peer import (
    ENVELOPE,
    connection_keys,
    endpoint,
    key_id,
    m1,
    m2,
    m2_head,
    m3,
    pack,
    prefixed,
    prk,
    sign,
    tags,
    transcript,
)

_M2_MESSAGE = m2(M2_HEAD, TAG_S)
_M3_MESSAGE = m3(TAG_C)


def _send(message: bytes) -> dict[str, Any]:
    return {"send": prefixed(message).hex()}


def _get(data: bytes) -> dict[str, Any]:
    return {"receive": data.hex()}


def _script(
    name: str,
    description: str,
    role: str,
    steps: list[dict[str, Any]],
    category: str,
    *,
    service: str = SERVICE,
    server: tuple[str, int] = SERVER,
    client: tuple[str, int] = CLIENT,
) -> Case:
    own: dict[str, Any] = {"limits": named_limits(LIMITS), "nonce": (NONCE_S if role == "server" else NONCE_C).hex()}
    if role == "server":
        own["instance"] = INSTANCE.hex()
    return {
        "id": name,
        "description": description,
        "role": role,
        "service": service,
        "secrets": [SECRET.hex()],
        "server": address(server),
        "client": address(client),
        "own": own,
        "steps": steps,
        "category": category,
    }


def _preamble_faults(message: bytes, other_type: int) -> list[tuple[str, str, bytes, str]]:
    """(name, description, message, category) for every field before the contents of ``message``."""
    malformed = "handshake_malformed"

    def put(at: int, value: bytes) -> bytes:
        return message[:at] + value + message[at + len(value) :]

    return [
        ("magic", "The last letter of the magic is wrong.", put(3, b"t"), malformed),
        ("version-0", "Version 0.", put(4, b"\0"), "version_unsupported"),
        ("version-2", "Version 2.", put(4, b"\2"), "version_unsupported"),
        ("type", f"Type {other_type}.", put(5, bytes([other_type])), malformed),
        ("flags-low", "The lowest flag is set.", put(7, b"\1"), malformed),
        ("flags-high", "The highest flag is set.", put(6, b"\x80"), malformed),
        ("magic-before-version", "Magic and version are wrong: magic comes first.", put(3, b"t\2"), malformed),
        ("version-before-type", "Version, type and flags are wrong.", put(4, b"\2\7\1\1"), "version_unsupported"),
    ]


def _length_faults(right: int) -> list[tuple[str, str, bytes]]:
    """(name, description, four bytes) for lengths that are refused as soon as these are there."""
    wrong = (0, right - 1, right + 1, 0xFFFF_FFFF)
    return [(f"length-{n:#x}", "The four bytes of the length alone.", n.to_bytes(4, "big")) for n in wrong]


def handshake_reject() -> list[Case]:
    """Server side up to M1, server side after M2, client side."""
    return [*_server_at_m1(), *_server_at_m3(), *_client()]


def _server_at_m1() -> list[Case]:
    def case(name: str, text: str, data: bytes, category: str, **ends: Any) -> Case:
        return _script(f"m1-{name}", text, "server", [_get(data)], category, **ends)

    malformed = "handshake_malformed"
    first = prefixed(M1_MESSAGE)
    unknown = m1(key_id(prk(OTHER_SECRET), SERVICE), LIMITS, NONCE_C)
    zero_added = m1(key_id(prk(SECRET + b"\0"), SERVICE), LIMITS, NONCE_C)
    record = signed(ENVELOPE, pack(list(fields().values())))
    return [
        *(case(name, text, data, malformed) for name, text, data in _length_faults(64)),
        case("http", "A browser.", b"GET / HTTP/1.1\r\nHost: 127.0.0.1:40001\r\n\r\n", malformed),
        case("tls", "The beginning of a TLS hello.", bytes.fromhex("1603010200010001fc0303"), malformed),
        case("ssh", "The beginning of an SSH banner.", b"SSH-2.0-OpenSSH_9.6\r\n", malformed),
        *(case(name, text, prefixed(data), category) for name, text, data, category in _preamble_faults(M1_MESSAGE, 2)),
        case("key-unknown", "The id of another secret.", prefixed(unknown), "key_unknown"),
        case("key-zero-added", "The id of our secret and a zero byte.", prefixed(zero_added), "key_unknown"),
        case("key-other-service", "Our secret, but for another service.", first, "key_unknown", service="other"),
        case("m3-first", "M3 in its place.", prefixed(_M3_MESSAGE), malformed),
        case("m2-first", "M2 in its place.", prefixed(_M2_MESSAGE), malformed),
        case("record-first", "A record in its place.", record, malformed),
        case("early-byte", "One byte behind M1, before M2 was sent.", first + b"\0", "early_data"),
        case("early-m3", "M3 behind M1, before M2 was sent.", first + prefixed(_M3_MESSAGE), "early_data"),
    ]


def _server_at_m3() -> list[Case]:
    def case(name: str, text: str, data: bytes, category: str, **ends: Any) -> Case:
        steps = [_get(prefixed(M1_MESSAGE)), _send(_M2_MESSAGE), _get(data)]
        return _script(f"m3-{name}", text, "server", steps, category, **ends)

    def with_m1(
        name: str, text: str, first: bytes, *, service: str = SERVICE, client: tuple[str, int] = CLIENT
    ) -> Case:
        """The honest M3 of another transcript, behind the M2 that this server makes of ``first``."""
        th = transcript(service, endpoint(SERVER, client), first, M2_HEAD)
        second = m2(M2_HEAD, tags(connection_keys(PRK, th), th)[0])
        steps = [_get(prefixed(first)), _send(second), _get(prefixed(_M3_MESSAGE))]
        return _script(f"m3-{name}", text, "server", steps, "authentication_failed", service=service, client=client)

    malformed, failed = "handshake_malformed", "authentication_failed"
    flipped = bytes([TAG_C[0] ^ 1]) + TAG_C[1:], TAG_C[:-1] + bytes([TAG_C[-1] ^ 0x80])
    other_key = m3(tags(connection_keys(prk(OTHER_SECRET), TH), TH)[1])
    raised = m1(key_id(PRK, SERVICE), (*LIMITS[:3], LIMITS[3] + 1), NONCE_C)
    other_nonce = m1(key_id(PRK, SERVICE), LIMITS, b"\xc2" * 32)
    copied_id = m1(key_id(PRK, "other"), LIMITS, NONCE_C)
    record = signed(ENVELOPE, pack(list(fields().values())))
    return [
        *(case(name, text, data, malformed) for name, text, data in _length_faults(40)),
        *(
            case(name, text, prefixed(data), category)
            for name, text, data, category in _preamble_faults(_M3_MESSAGE, 1)
        ),
        case("m1-again", "M1 a second time.", prefixed(M1_MESSAGE), malformed),
        case("m2-reflected", "The server's own M2.", prefixed(_M2_MESSAGE), malformed),
        case("record-before", "A record in its place.", record, malformed),
        case("tag-first-bit", "The first byte of tag_c is wrong.", prefixed(m3(flipped[0])), failed),
        case("tag-last-bit", "The last byte of tag_c is wrong.", prefixed(m3(flipped[1])), failed),
        case("tag-zero", "tag_c is zero.", prefixed(m3(bytes(32))), failed),
        case("tag-s-reflected", "tag_s in place of tag_c.", prefixed(m3(TAG_S)), failed),
        case("tag-other-key", "tag_c under another secret, the key id copied.", prefixed(other_key), failed),
        case(
            "wrong-tag-and-record",
            "A wrong tag_c with a good record behind it: nothing of that is read.",
            prefixed(m3(bytes(32))) + record,
            failed,
        ),
        with_m1("m1-altered", "The limits in M1 were raised on the way; M3 is that of the unaltered one.", raised),
        with_m1("recorded", "M3 of another connection, recorded.", other_nonce),
        with_m1(
            "relayed",
            "M3 of a client whose address is not the one that the server sees.",
            M1_MESSAGE,
            client=("127.0.0.1", 50001),
        ),
        with_m1("other-service", "M3 of another service, the key id copied.", copied_id, service="other"),
    ]


def _client() -> list[Case]:
    def case(name: str, text: str, data: bytes, category: str) -> Case:
        return _script(f"m2-{name}", text, "client", [_send(M1_MESSAGE), _get(data)], category)

    def made(
        secret: bytes = SECRET,
        service: str = SERVICE,
        server: tuple[str, int] = SERVER,
        client: tuple[str, int] = CLIENT,
        first: bytes = M1_MESSAGE,
        nonce: bytes = NONCE_S,
    ) -> bytes:
        """An M2 that is right for other circumstances."""
        head = m2_head(INSTANCE, LIMITS, nonce)
        th = transcript(service, endpoint(server, client), first, head)
        return prefixed(m2(head, tags(connection_keys(prk(secret), th), th)[0]))

    def flipped(at: int) -> bytes:
        return prefixed(_M2_MESSAGE[:at] + bytes([_M2_MESSAGE[at] ^ 1]) + _M2_MESSAGE[at + 1 :])

    malformed, failed = "handshake_malformed", "authentication_failed"
    other_m1 = m1(key_id(PRK, SERVICE), LIMITS, b"\xc2" * 32)
    lowered = m1(key_id(PRK, SERVICE), (*LIMITS[:3], LIMITS[3] - 1), NONCE_C)
    mislabelled = sign(KEYS.fin_s, b"client finished\0" + TH)
    second = prefixed(_M2_MESSAGE)
    server_record = signed(ENVELOPE, pack(list(fields().values())), direction="s2c")
    return [
        *(case(name, text, data, malformed) for name, text, data in _length_faults(96)),
        *(
            case(name, text, prefixed(data), category)
            for name, text, data, category in _preamble_faults(_M2_MESSAGE, 1)
        ),
        case("m1-reflected", "The client's own M1.", prefixed(M1_MESSAGE), malformed),
        case("m3-instead", "M3 in its place.", prefixed(_M3_MESSAGE), malformed),
        case("http", "Another protocol's answer.", b"HTTP/1.1 400 Bad Request\r\n\r\n", malformed),
        case("instance-bit", "A bit of instance is wrong.", flipped(8), failed),
        case("limits-bit", "A bit of limits_s is wrong.", flipped(31), failed),
        case("nonce-bit", "A bit of nonce_s is wrong.", flipped(63), failed),
        case("tag-first-bit", "A bit of the first byte of tag_s is wrong.", flipped(64), failed),
        case("tag-last-bit", "A bit of the last byte of tag_s is wrong.", flipped(95), failed),
        case("tag-zero", "tag_s is zero.", prefixed(m2(M2_HEAD, bytes(32))), failed),
        case("tag-c-instead", "tag_c in place of tag_s.", prefixed(m2(M2_HEAD, TAG_C)), failed),
        case("tag-other-label", "tag_s made with the client's label.", prefixed(m2(M2_HEAD, mislabelled)), failed),
        case("other-key", "A server with another secret.", made(secret=OTHER_SECRET), failed),
        case("other-service", "A server of another service.", made(service="other"), failed),
        case("recorded", "M2 for another M1, recorded.", made(first=other_m1), failed),
        case("m1-altered", "The limits in M1 were lowered on the way to the server.", made(first=lowered), failed),
        case("relayed-client", "M2 for another client port.", made(client=("127.0.0.1", 50001)), failed),
        case("relayed-server", "M2 of a server on another port.", made(server=("127.0.0.1", 40002)), failed),
        case("ends-swapped", "Server and client swapped.", made(server=CLIENT, client=SERVER), failed),
        case("nonce-equal", "nonce_s is nonce_c, tag_s right for it.", made(nonce=NONCE_C), failed),
        case("early-byte", "One byte behind M2, before M3 was sent.", second + b"\0", "early_data"),
        case("early-record", "A record behind M2, before M3 was sent.", second + server_record, "early_data"),
        _script(
            "m2-none",
            "The server ends the connection without an answer.",
            "client",
            [_send(M1_MESSAGE), {"eof": True}],
            "handshake_refused",
        ),
        _script(
            "self-connect",
            "The client's own address is the one it dialled: nothing is sent.",
            "client",
            [],
            "self_connect",
            server=SERVER,
            client=SERVER,
        ),
    ]
