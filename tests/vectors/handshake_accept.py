"""Handshakes that both sides must complete, and every value that they derive."""

from __future__ import annotations

from tests.vectors.common import (
    CLIENT,
    INSTANCE,
    LIMITS,
    NONCE_C,
    NONCE_S,
    OTHER_SECRET,
    SECRET,
    SERVER,
    SERVICE,
    Case,
    address,
    fields,
    named_limits,
)
from tests.wire_peer import (
    Limits,
    connection_keys,
    endpoint,
    envelope_body,
    frame,
    key_id,
    m1,
    m2,
    m2_head,
    m3,
    prk,
    tags,
    transcript,
)


def _accept(
    name: str,
    description: str,
    *,
    secret: bytes = SECRET,
    server_secrets: tuple[bytes, ...] | None = None,
    service: str = SERVICE,
    server: tuple[str, int] = SERVER,
    client: tuple[str, int] = CLIENT,
    limits_c: Limits = LIMITS,
    limits_s: Limits = LIMITS,
    nonce_c: bytes = NONCE_C,
    nonce_s: bytes = NONCE_S,
    instance: bytes = INSTANCE,
    record: bool = False,
) -> Case:
    """Everything that the two sides put in and everything that must come out."""
    extracted = prk(secret)
    first = m1(key_id(extracted, service), limits_c, nonce_c)
    head = m2_head(instance, limits_s, nonce_s)
    ends = endpoint(server, client)
    th = transcript(service, ends, first, head)
    keys = connection_keys(extracted, th)
    tag_s, tag_c = tags(keys, th)
    plain = list(fields().values())
    return {
        "id": name,
        "description": description,
        "service": service,
        "client_secret": secret.hex(),
        "server_secrets": [key.hex() for key in server_secrets or (secret,)],
        "server": address(server),
        "client": address(client),
        "limits_c": named_limits(limits_c),
        "limits_s": named_limits(limits_s),
        "nonce_c": nonce_c.hex(),
        "nonce_s": nonce_s.hex(),
        "instance": instance.hex(),
        "prk": extracted.hex(),
        "key_id": key_id(extracted, service).hex(),
        "m1": first.hex(),
        "m2": m2(head, tag_s).hex(),
        "m3": m3(tag_c).hex(),
        "endpoint": ends.hex(),
        "th": th.hex(),
        "k_fin_s": keys.fin_s.hex(),
        "k_fin_c": keys.fin_c.hex(),
        "k_c2s": keys.c2s.hex(),
        "k_s2c": keys.s2c.hex(),
        "first_record": frame(keys.c2s, envelope_body(0, plain, b"hello")).hex() if record else None,
    }


def handshake_accept() -> list[Case]:
    """The cases in the order of the file; the frozen one of section 4.4 comes first."""
    nearly = NONCE_C[:-1] + bytes([NONCE_C[-1] ^ 1])
    return [
        _accept("handshake-frozen", "The handshake of section 4.4."),
        _accept("first-record-with-m3", "The client's first record in the same write as M3.", record=True),
        _accept(
            "limits-zero",
            "Any limits are legal, also such under which nothing can be sent.",
            limits_c=(0, 0, 0, 0),
            limits_s=(0, 0, 0, 0),
        ),
        _accept(
            "limits-largest",
            "Any limits are legal.",
            limits_c=(2**32 - 1,) * 4,
            limits_s=(2**32 - 1,) * 4,
        ),
        _accept(
            "limits-differ",
            "Each side has limits of its own.",
            limits_c=(64, 1, 1, 65_646),
            limits_s=(1_048_576, 86_400, 16_384, 2_000_000),
        ),
        _accept(
            "second-key",
            "The server's current key is another one; the client's is still accepted.",
            server_secrets=(OTHER_SECRET, SECRET),
        ),
        _accept("secret-longer-than-a-block", "A secret of 100 bytes.", secret=bytes(range(100))),
        _accept("service-64", "The longest name of a service.", service="S" * 59 + "az._-"),
        _accept("other-ports", "The lowest and the highest port.", server=(SERVER[0], 1), client=(CLIENT[0], 65_535)),
        _accept("nonces-differ-in-one-bit", "The nonces are different, if only just.", nonce_s=nearly),
        _accept(
            "all-zero", "Nonce and instance of zeros are bytes like any others.", nonce_s=bytes(32), instance=bytes(8)
        ),
    ]
