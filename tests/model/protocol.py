"""The messages, tags and keys of wire protocol 1 as terms: the model's reading of sections 4.1 to 4.3 of the design."""

from __future__ import annotations

from typing import NamedTuple

from tests.model.design import Design
from tests.model.terms import Term, expand, hmac, literal, lp, name, piece, row, sha256

SECRET = name("secret", "shared", 32)
_EXTRACT = literal(b"ipc_twisted/1 extract")
_HEADS = {number: literal(b"IPCT" + bytes([1, number, 0, 0])) for number in (1, 2, 3)}
_ENVELOPE = literal(b"\x01")


class View(NamedTuple):
    """What one end believes about its connection: that on which both must agree."""

    service: Term
    server_address: Term
    client_address: Term
    key_id: Term
    client_limits: Term
    client_nonce: Term
    instance: Term
    server_limits: Term
    server_nonce: Term


class Keys(NamedTuple):
    """The four keys of a connection, in the order in which they are cut."""

    server_finished: Term
    client_finished: Term
    client_to_server: Term
    server_to_client: Term


class Handshake(NamedTuple):
    """All that follows from one view."""

    m1: Term
    m2_unsigned: Term
    transcript: Term
    keys: Keys
    server_tag: Term
    client_tag: Term


def prk(design: Design) -> Term:
    return hmac(_EXTRACT, SECRET if design.keys_from_secret else literal(bytes(32)))


def key_id(design: Design, service: Term) -> Term:
    label = literal(b"ipc_twisted/1 key id\0")
    return expand(hmac(_EXTRACT, SECRET), row(label, lp(service)) if design.service_in_key_id else label, 8)


def handshake(design: Design, view: View) -> Handshake:
    """The three messages, the transcript hash, the keys and the tags as an end with this view makes them."""
    th = _transcript(design, view)
    okm = expand(prk(design), row(literal(b"ipc_twisted/1 connection keys\0"), th), 128)
    keys = Keys(*(piece(okm, number) for number in range(4)))
    if not design.own_finished_keys:
        keys = keys._replace(client_finished=keys.server_finished)
    if not design.keys_from_transcript:
        fixed = expand(prk(design), literal(b"ipc_twisted/1 connection keys\0"), 128)
        keys = keys._replace(client_to_server=piece(fixed, 2), server_to_client=piece(fixed, 3))
    if not design.own_key_per_direction:
        keys = keys._replace(server_to_client=keys.client_to_server)
    server_label = literal(b"server finished\0")
    client_label = literal(b"client finished\0") if design.own_finished_labels else server_label
    server_tag = hmac(keys.server_finished, row(server_label, th))
    covered = (th, server_tag) if design.client_tag_covers_server_tag else (th,)
    client_tag = hmac(keys.client_finished, row(client_label, *covered))
    m1 = row(_HEADS[1], view.key_id, view.client_limits, view.client_nonce)
    m2_unsigned = row(_HEADS[2], view.instance, view.server_limits, view.server_nonce)
    return Handshake(m1, m2_unsigned, th, keys, server_tag, client_tag)


def m2(made: Handshake) -> Term:
    return row(made.m2_unsigned, made.server_tag)


def m3(made: Handshake) -> Term:
    return row(_HEADS[3], made.client_tag)


def _transcript(design: Design, view: View) -> Term:
    """Fields that a weakened design leaves out are not there at all."""

    def kept(term: Term, keep: bool) -> tuple[Term, ...]:
        return (term,) if keep else ()

    return sha256(
        row(
            lp(literal(b"ipc_twisted/1 transcript")),
            *kept(lp(view.service), design.service_in_transcript),
            *kept(lp(row(view.server_address, view.client_address)), design.endpoint_in_transcript),
            lp(
                row(
                    _HEADS[1],
                    view.key_id,
                    *kept(view.client_limits, design.client_limits_in_transcript),
                    *kept(view.client_nonce, design.client_nonce_in_transcript),
                )
            ),
            lp(
                row(
                    _HEADS[2],
                    *kept(view.instance, design.instance_in_transcript),
                    *kept(view.server_limits, design.server_limits_in_transcript),
                    view.server_nonce,
                )
            ),
        )
    )


def content(sender: str, which: int, number: int) -> Term:
    """What lies behind ``seq`` in a session's record with this number. Public; it tells records apart."""
    return name(f"{sender} {which} record", number, 0)


def body(design: Design, seq: int, inner: Term) -> Term:
    """What is signed of a record."""
    counted = (literal(seq.to_bytes(8, "big")),) if design.sequence_in_records else ()
    return row(_ENVELOPE, *counted, inner)


def signature(design: Design, key: Term, seq: int, inner: Term) -> Term:
    return hmac(key, body(design, seq, inner))
