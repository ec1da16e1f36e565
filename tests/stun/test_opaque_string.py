"""RFC 8265, section 4.2: the OpaqueString profile. The RFC's own examples (4.3) are among these."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.errors import ConfigurationError
from polynya.stun.opaque_string import opaque_string


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("correct horse battery staple", "correct horse battery staple"),
        ("Correct Horse Battery Staple", "Correct Horse Battery Staple"),
        ("\u03c0\u00df\u00e5", "\u03c0\u00df\u00e5"),
        ("Jack of \u2666s", "Jack of \u2666s"),
        ("foo\u1680bar", "foo bar"),
        ("foo\u00a0bar\u3000", "foo bar "),
        ("e\u0301", "\u00e9"),
        ("\uff21", "\uff21"),  # no width mapping
        ("\u212b", "\u00c5"),  # NFC of ANGSTROM SIGN
        ("\u2168", "\u2168"),  # a compatibility character is valid, and stays
        ("\u30de\u30c8\u30ea\u30c3\u30af\u30b9", "\u30de\u30c8\u30ea\u30c3\u30af\u30b9"),
        ("\U0001f512", "\U0001f512"),
        ("l\u00b7l", "l\u00b7l"),
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u200d\u0937"),  # a joiner after a virama
        ("\u30ab\u30fb\u30ab", "\u30ab\u30fb\u30ab"),
        ("\u0661\u0662", "\u0661\u0662"),
        ("\u05d0\u05f3", "\u05d0\u05f3"),
        ("\u0375\u03b1", "\u0375\u03b1"),
    ],
)
def test_what_is_allowed_is_prepared(text: str, prepared: str) -> None:
    assert opaque_string(text) == prepared


@pytest.mark.parametrize(
    "text",
    [
        "",
        "my cat is a \u0009by",
        "nul\0",
        "The\u00adM",  # SOFT HYPHEN is ignorable
        "\u200b",
        "\u200d",
        "a\u200cb",
        "\ufeff",
        "\ud800",
        "\ue000",  # private use
        "\uffff",
        "\u0378",  # not assigned
        "\u1100",  # conjoining jamo
        "\u0640",
        "a\u00b7b",
        "\u0661\u06f1",  # digits of two kinds
        "x\u05f3",
        "\u0375x",
        "a\u30fbb",
        "\u2028",
        "\u034f",  # ignorable, though a mark
        "\u3164",  # ignorable, though a letter
        "\u2764\ufe0f",  # a variation selector
    ],
)
def test_what_is_disallowed_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        opaque_string(text)


@given(st.text(max_size=12))
def test_preparing_twice_changes_nothing_more(text: str) -> None:
    try:
        prepared = opaque_string(text)
    except ConfigurationError:
        return
    assert opaque_string(prepared) == prepared
    assert unicodedata.is_normalized("NFC", prepared)
