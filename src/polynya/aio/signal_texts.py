"""Texts for signaling by hand: several joined ones are split again, and one is made short enough to paste.

Each text of `local_signals` is an RFC 8840 fragment. The short form is one line: `polynya1:` and base64url of the same
fragment, deflated with a preset dictionary (RFC 1951, RFC 4648). The dictionary belongs to the format: a changed one
needs another number in the prefix.
"""

from __future__ import annotations

import re
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from typing import Final

from polynya.core.errors import DecodeError, UsageError

PREFIX: Final = "polynya1:"
"""Begins the short form."""
MAX_TEXT: Final = 1 << 18
"""Characters of all texts together, and of one after it was inflated."""
_DICTIONARY: Final = (
    b"a=ice-lite\r\na=polynya-generation:1\r\ntyp prflx tcptype passive active so tcp .local "
    b"fe80::fd00::2001:db8:10.0.0.172.16.127.0.0.1 network-cost network-id \r\n"
    b"a=mid:1\r\nm=audio 9 RTP/AVP 0\r\na=mid:0\r\n"
    b"a=candidate:1 1 udp 2130706431 192.168.1. typ host\r\n"
    b"a=candidate:2 1 udp 1694498815  typ srflx raddr 192.168. rport 5\r\n"
    b"a=candidate:3 1 udp 16777215  typ relay raddr  rport \r\n"
    b"a=ice-options:ice2 trickle\r\na=ice-pacing:5\r\na=end-of-candidates\r\n"
    b"m=audio 9 RTP/AVP 0\r\na=mid:0\r\na=candidate:a=ice-ufrag:\r\na=ice-pwd:"
)
_CODE: Final = re.compile(r"[A-Za-z0-9_-]+")
_RAW: Final = -15
"""Deflate without a header."""
_UFRAG: Final = "a=ice-ufrag:"


def shorten(fragment: str) -> str:
    """Returns the short form of one fragment, on one line."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, _RAW, 9, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
    deflated = deflate.compress(fragment.encode()) + deflate.flush()
    return PREFIX + urlsafe_b64encode(deflated).rstrip(b"=").decode()


def fragments(text: str) -> list[str]:
    """Splits one text or several joined ones into fragments; line breaks inside of a short form are ignored.

    Raises UsageError for bytes and other types, DecodeError for what holds no signal or is too long.
    """
    _refuse_others(text)
    if len(text) > MAX_TEXT:
        raise DecodeError(f"a signal of {len(text)} characters is longer than {MAX_TEXT}")
    found: list[str] = []
    fragment: list[str] = []
    code: list[str] = []
    for line in filter(None, map(str.strip, text.split("\n"))):
        if line.startswith(PREFIX):
            _end(found, fragment, code)
            code.append(line.removeprefix(PREFIX))
        elif code and _CODE.fullmatch(line):
            code.append(line)
        else:
            if code or _begins_another(line, fragment):
                _end(found, fragment, code)
            fragment.append(line)
    _end(found, fragment, code)
    if not found:
        raise DecodeError("the signal is empty: ice-ufrag and ice-pwd are missing")
    return found


def _refuse_others(text: object) -> None:
    if not isinstance(text, str):
        hint = ": pass data.decode()" if isinstance(text, bytes | bytearray | memoryview) else ""
        raise UsageError(f"a remote signal is text, not {type(text).__name__}{hint}")


def _begins_another(line: str, fragment: list[str]) -> bool:
    """Whether `line` starts the next of two joined fragments.

    The fragments of `local_signals` start with the session's ufrag. A fragment of another program may repeat it for a
    medium, before the candidates of that medium.
    """
    if not line.startswith(_UFRAG) or not fragment or not fragment[0].startswith(_UFRAG):
        return False
    media = [number for number, each in enumerate(fragment) if each.startswith("m=")]
    return not media or any(each.startswith("a=candidate:") for each in fragment[media[-1] :])


def _end(found: list[str], fragment: list[str], code: list[str]) -> None:
    """Completes the fragment or the short form that was being read."""
    if fragment:
        found.append("".join(f"{line}\r\n" for line in fragment))
        fragment.clear()
    if code:
        found.append(_inflate("".join(code)))
        code.clear()


def _inflate(code: str) -> str:
    inflate = zlib.decompressobj(_RAW, _DICTIONARY)
    try:
        deflated = urlsafe_b64decode(code + "=" * (-len(code) % 4))
        inflated = inflate.decompress(deflated, MAX_TEXT)
        fragment = inflated.decode()
    except (Error, ValueError, zlib.error):
        fragment = ""
    if not fragment or not inflate.eof or inflate.unused_data or not _CODE.fullmatch(code):
        raise DecodeError(f"the signal {PREFIX}... is damaged or incomplete: copy the whole line")
    return fragment
