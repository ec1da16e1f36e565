"""Numbers that TURN clients and servers share (RFC 8656), each defined once. Durations are nanoseconds."""

from __future__ import annotations

from typing import Final

from polynya.core.instants import SECOND

DEFAULT_LIFETIME: Final = 600 * SECOND
"""Lifetime of an allocation if the client requests none (section 3.2)."""
MAX_LIFETIME: Final = 3600 * SECOND
"""The longest that a server should grant (section 7.2)."""
PERMISSION_LIFETIME: Final = 300 * SECOND
"""Section 9; it is fixed."""
CHANNEL_LIFETIME: Final = 600 * SECOND
"""Section 12."""
CHANNEL_REST: Final = 300 * SECOND
"""After a channel ends, its number and peer are not bound to others, so that late packets reach no wrong peer."""
RESERVATION_LIFETIME: Final = 30 * SECOND
"""How long the second port of EVEN-PORT is reserved for its RESERVATION-TOKEN (section 7.2)."""

FIRST_CHANNEL: Final = 0x4000
LAST_CHANNEL: Final = 0x4FFF
"""0x5000 to 0xFFFF are reserved (section 12)."""
LAST_CHANNEL_RFC5766: Final = 0x7FFF
"""The last channel of old clients."""

UDP: Final = 17
TCP: Final = 6
"""Values of REQUESTED-TRANSPORT."""
