"""The numbers that both ends of TURN must agree on (RFC 8656), each written once. Durations are nanoseconds."""

from __future__ import annotations

from typing import Final

from polynya.core.instants import SECOND

DEFAULT_LIFETIME: Final = 600 * SECOND
"""Of an allocation for which nothing else was asked (section 3.2)."""
MAX_LIFETIME: Final = 3600 * SECOND
"""The longest that a server should grant (section 7.2)."""
PERMISSION_LIFETIME: Final = 300 * SECOND
"""Section 9: always this, nobody can ask for another."""
CHANNEL_LIFETIME: Final = 600 * SECOND
"""Section 12."""
CHANNEL_REST: Final = 300 * SECOND
"""After its end neither a channel's number nor its peer is bound to another, so that late packets find no stranger."""
RESERVATION_LIFETIME: Final = 30 * SECOND
"""For how long an EVEN-PORT's second port waits for its RESERVATION-TOKEN (section 7.2)."""

FIRST_CHANNEL: Final = 0x4000
LAST_CHANNEL: Final = 0x4FFF
"""0x5000 to 0xFFFF are reserved (section 12)."""
LAST_CHANNEL_RFC5766: Final = 0x7FFF
"""What old clients use."""

UDP: Final = 17
TCP: Final = 6
"""Values of REQUESTED-TRANSPORT."""
