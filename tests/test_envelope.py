"""The envelope as a value."""

from __future__ import annotations

import copy
import pickle

import pytest

from ipc_twisted.core.envelope import FIELD_RULES, HeaderFields, SecureEnvelope

FULL = SecureEnvelope(
    1_763_900_000, "n", "job.run", "trace", "reply", ["a", "b"], {"h": "v"}, b"swordfish", "5ec2e7" * 10 + "5ec2"
)


def test_it_has_the_nine_fields_of_the_contract() -> None:
    names = ("ts", "nonce", "kind", "trace_id", "reply_to", "target", "headers", "payload_bytes", "sig")
    assert SecureEnvelope.__struct_fields__ == names


def test_only_three_fields_must_be_given() -> None:
    assert SecureEnvelope(1, "n", "k") == SecureEnvelope(1, "n", "k", None, None, None, {}, b"", "")


@pytest.mark.parametrize("name", SecureEnvelope.__struct_fields__)
def test_no_field_can_be_set(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(FULL, name, "x")


def test_it_compares_by_value() -> None:
    assert copy.deepcopy(FULL) == FULL
    assert SecureEnvelope(1, "n", "k") != SecureEnvelope(1, "m", "k")


def test_two_envelopes_never_share_their_default_headers() -> None:
    one, other = SecureEnvelope(1, "n", "k"), SecureEnvelope(1, "n", "k")
    one.headers["a"] = "b"
    assert other.headers == {}


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r}".format])
def test_its_text_shows_neither_payload_nor_signature(show: object) -> None:
    """It ends up in logs and tracebacks."""
    assert callable(show)
    shown = show(FULL)
    assert "swordfish" not in shown
    assert "5ec2" not in shown
    assert shown == (
        "<SecureEnvelope kind='job.run' trace_id='trace' reply_to='reply' target=['a', 'b'] "
        "ts=1763900000 nonce='n' payload_bytes=<9 bytes>>"
    )


def test_rich_shows_the_same_text() -> None:
    """Its tracebacks and its ``print`` would else show every field."""
    assert list(FULL.__rich_repr__()) == [("", repr(FULL))]


def test_its_text_escapes_what_a_peer_wrote() -> None:
    """A newline or a terminal escape in a kind must not forge log lines."""
    shown = repr(SecureEnvelope(1, "\r", "a\nb", "\x1b[2J", "\x07", "\u202e"))
    assert shown.isprintable()


def test_it_can_be_pickled_by_who_has_it() -> None:
    assert pickle.loads(pickle.dumps(FULL)) == FULL


def test_there_is_a_rule_in_words_for_each_field_of_the_header() -> None:
    assert tuple(FIELD_RULES) == SecureEnvelope.__struct_fields__[:7]
    assert tuple(type_ for type_, _ in FIELD_RULES.values()) == HeaderFields.__args__  # type: ignore[attr-defined]
