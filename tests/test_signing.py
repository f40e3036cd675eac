"""Signatures: HMAC-SHA256 and nothing else, and no key gets out of its object."""

from __future__ import annotations

import copy
import hmac
import pickle

import pytest

from ipc_twisted.core.signing import SIG_BYTES, MacKey

# RFC 4231, test cases 1 to 4, 6 and 7.
RFC_4231 = [
    (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    (b"Jefe", b"what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
    (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    (bytes(range(1, 26)), b"\xcd" * 50, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
    (
        b"\xaa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
    (
        b"\xaa" * 131,
        b"This is a test using a larger than block-size key and a larger than block-size data. "
        b"The key needs to be hashed before being used by the HMAC algorithm.",
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
    ),
]
KEY = b"\x5e\xc2\xe7" * 10 + b"\x5e\xc2"


@pytest.mark.parametrize(("key", "message", "tag"), RFC_4231)
def test_the_vectors_of_rfc_4231(key: bytes, message: bytes, tag: str) -> None:
    assert MacKey(key).sign(message).hex() == tag
    assert MacKey(key).verifies(bytes.fromhex(tag), message)


@pytest.mark.parametrize("parts", [(), (b"",), (b"abc",), (b"a", b"", b"bc"), (memoryview(b"ab"), bytearray(b"c"))])
def test_parts_are_signed_as_if_they_were_one(parts: tuple[bytes, ...]) -> None:
    tag = hmac.digest(KEY, b"".join(parts), "sha256")
    assert MacKey(KEY).sign(*parts) == tag
    assert MacKey(KEY).verifies(tag, *parts)


def test_one_key_signs_any_number_of_records() -> None:
    """Each starts from the same keyed state; none leaves a trace in it."""
    key = MacKey(KEY)
    assert [key.sign(b"a"), key.sign(b"b"), key.sign(b"a")] == [
        hmac.digest(KEY, data, "sha256") for data in (b"a", b"b", b"a")
    ]


def test_every_changed_bit_of_a_tag_is_noticed() -> None:
    key = MacKey(KEY)
    tag = key.sign(b"message")
    for bit in range(8 * SIG_BYTES):
        assert not key.verifies(
            bytes(byte ^ (1 << bit % 8 if at == bit // 8 else 0) for at, byte in enumerate(tag)), b"message"
        )


@pytest.mark.parametrize("length", [0, 1, 16, 31, 33, 64])
def test_a_tag_of_another_length_is_wrong(length: int) -> None:
    """A truncated tag must not be compared by the part that is there."""
    key = MacKey(KEY)
    assert not key.verifies((key.sign(b"m") * 2)[:length], b"m")


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r}".format])
def test_a_key_does_not_show_itself(show: object) -> None:
    assert callable(show)
    assert show(MacKey(KEY)) == "<MacKey (redacted)>"


@pytest.mark.parametrize("leave", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_key_does_not_leave_its_object(leave: object) -> None:
    assert callable(leave)
    with pytest.raises(TypeError, match="a key cannot be pickled"):
        leave(MacKey(KEY))


def test_a_key_holds_no_bytes() -> None:
    """Only OpenSSL's state: tracebacks with locals, and debuggers that print attributes, find nothing."""
    key = MacKey(KEY)
    assert not hasattr(key, "__dict__")
    assert [type(getattr(key, name)).__name__ for name in MacKey.__slots__] == ["builtin_function_or_method"]
    assert KEY.hex() not in repr(key.new)
