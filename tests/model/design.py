"""The design as a set of decisions, each of which can be taken back, alone or with others."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Design:
    """Section 4 of the design as it is; False takes a decision back."""

    service_in_key_id: bool = True
    service_in_transcript: bool = True
    endpoint_in_transcript: bool = True
    client_limits_in_transcript: bool = True
    client_nonce_in_transcript: bool = True
    instance_in_transcript: bool = True
    server_limits_in_transcript: bool = True
    server_nonce_fresh: bool = True
    keys_from_secret: bool = True
    keys_from_transcript: bool = True
    own_finished_keys: bool = True
    own_finished_labels: bool = True
    client_tag_covers_server_tag: bool = True
    own_key_per_direction: bool = True
    sequence_in_records: bool = True
    server_proves_itself_first: bool = True
    client_refuses_its_own_nonce: bool = True

    def without(self, *decisions: str) -> Design:
        return replace(self, **dict.fromkeys(decisions, False))


REAL = Design()

NEEDED: dict[str, tuple[str, ...]] = {
    "no endpoint binding": ("endpoint_in_transcript",),
    "no role separation": ("own_finished_keys", "own_finished_labels", "client_tag_covers_server_tag"),
    "constant server nonce": ("server_nonce_fresh",),
    "client nonce outside the transcript": ("client_nonce_in_transcript",),
    "one key for both directions": ("own_key_per_direction",),
    "the client proves itself first": ("server_proves_itself_first",),
    "client limits outside the transcript": ("client_limits_in_transcript",),
    "server limits outside the transcript": ("server_limits_in_transcript",),
    "instance outside the transcript": ("instance_in_transcript",),
    "service in no key and no transcript": ("service_in_key_id", "service_in_transcript"),
    "connection keys that need no secret": ("keys_from_secret",),
    "record keys that are the same for all connections": ("keys_from_transcript",),
    "no sequence number in records": ("sequence_in_records",),
}
"""What must stay: without one of these there is an attack, and the model has to find it."""

SPARE: dict[str, tuple[str, ...]] = {
    "tag_c does not cover tag_s": ("client_tag_covers_server_tag",),
    "one label for both tags, over keys of their own": ("own_finished_labels", "client_tag_covers_server_tag"),
    "one key for both tags, with labels of their own": ("own_finished_keys", "client_tag_covers_server_tag"),
    "one key and one label for both tags, of which tag_c covers more": ("own_finished_keys", "own_finished_labels"),
    "service only in the key id, which is in M1": ("service_in_transcript",),
    "service only in the transcript": ("service_in_key_id",),
    "a client that takes its own nonce back": ("client_refuses_its_own_nonce",),
}
"""What is there twice: without one of these something else still holds. No attack, and the model must find none."""
