"""The OpaqueString profile for user names, realms and passwords (RFC 8265, section 4.2; RFC 8264, sections 4.3 and 9).

Spaces that are not ASCII become U+0020, then the text is normalized to NFC; neither width nor case is mapped. The
result must be in the PRECIS FreeformClass, which is checked by code point, in the RFC's order.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from polynya.core.errors import ConfigurationError

# RFC 5892, section 2.6, without the code points that stay invalid by any other rule.
_EXCEPTIONS_VALID: Final = frozenset("\u00b7\u00df\u03c2\u06fd\u06fe\u0f0b\u3007")
_EXCEPTIONS_DISALLOWED: Final = frozenset("\u0640\u07fa\u302e\u302f\u3031\u3032\u3033\u3034\u3035\u303b")
_ARABIC_INDIC: Final = range(0x0660, 0x066A)
_EXTENDED_ARABIC_INDIC: Final = range(0x06F0, 0x06FA)
_VIRAMA: Final = 9

# The FreeformClass by general category: letters, marks, digits, symbols, punctuation, and U+0020 (category Zs).
_VALID_CATEGORIES: Final = (
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Zs", "Sm", "Sc", "Sk", "So", "Pc", "Pd", "Ps",
    "Pe", "Pi", "Pf", "Po",
)  # fmt: skip

# Default_Ignorable_Code_Point (DerivedCoreProperties) of assigned or reserved code points: `unicodedata` lacks it.
_DEFAULT_IGNORABLE: Final = (
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
# OldHangulJamo (RFC 5892, section 2.9).
_OLD_HANGUL_JAMO: Final = ((0x1100, 0x11FF), (0xA960, 0xA97C), (0xD7B0, 0xD7FB))


def opaque_string(text: str) -> str:
    """Prepare and enforce `text`. Raises ConfigurationError if it is empty or has characters that are not allowed."""
    if text.isascii() and text.isprintable() and text:
        return text  # the common case, which needs no mapping or check
    mapped = "".join(" " if unicodedata.category(character) == "Zs" else character for character in text)
    normalized = unicodedata.normalize("NFC", mapped)
    if not normalized:
        raise ConfigurationError("the user name, realm or password is empty")
    for index, character in enumerate(normalized):
        if not _allowed(character, normalized, index):
            raise ConfigurationError(
                f"U+{ord(character):04X} must not be in a user name, realm or password (RFC 8265, section 4.2)"
            )
    return normalized


def _allowed(character: str, text: str, index: int) -> bool:
    """Whether a code point is in the FreeformClass at its position (RFC 8264, section 8, in its order)."""
    if character in _EXCEPTIONS_VALID:
        return character != "\u00b7" or _between_ls(text, index)
    if character in _EXCEPTIONS_DISALLOWED:
        return False
    code = ord(character)
    if code in _ARABIC_INDIC:
        return not any(ord(other) in _EXTENDED_ARABIC_INDIC for other in text)
    if code in _EXTENDED_ARABIC_INDIC:
        return not any(ord(other) in _ARABIC_INDIC for other in text)
    if code in (0x200C, 0x200D):  # joiners: only after a virama (RFC 5892, appendices A.1 and A.2)
        return index > 0 and unicodedata.combining(text[index - 1]) == _VIRAMA
    if 0x21 <= code <= 0x7E:
        return True
    if character in "\u0375\u05f3\u05f4\u30fb":
        return _contextual_punctuation(character, text, index)
    if _within(code, _OLD_HANGUL_JAMO) or _within(code, _DEFAULT_IGNORABLE):
        return False
    return unicodedata.category(character) in _VALID_CATEGORIES


def _between_ls(text: str, index: int) -> bool:
    return 0 < index < len(text) - 1 and text[index - 1] == text[index + 1] == "l"


def _contextual_punctuation(character: str, text: str, index: int) -> bool:
    """KERAIA before Greek, GERESH and GERSHAYIM after Hebrew, MIDDLE DOT with Japanese (RFC 5892, appendix A)."""
    if character == "\u30fb":
        return any(_script(other) in ("HIRAGANA", "KATAKANA", "CJK") for other in text if other != character)
    if character == "\u0375":
        return index + 1 < len(text) and _script(text[index + 1]) == "GREEK"
    return index > 0 and _script(text[index - 1]) == "HEBREW"


def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]


def _within(code: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(low <= code <= high for low, high in ranges)
