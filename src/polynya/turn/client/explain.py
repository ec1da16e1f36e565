"""Explanations of a TURN server's refusals, with advice, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from polynya.stun.attributes import StunError
from polynya.stun.registry import ErrorCode, Method

MEANINGS: Final[Mapping[int, str]] = {
    ErrorCode.TRY_ALTERNATE: "it redirects clients to another server",
    ErrorCode.BAD_REQUEST: "it cannot read the request, or the request contradicts itself",
    ErrorCode.UNAUTHENTICATED: "the user name or password is wrong or has expired",
    ErrorCode.FORBIDDEN: "its rules forbid this, for this user or for this peer's address",
    ErrorCode.UNKNOWN_ATTRIBUTE: "it does not support an option of the request",
    ErrorCode.ALLOCATION_MISMATCH: "it has no allocation for this address and port, or already has one: "
    "the server was restarted, a NAT changed the port, or the allocation has expired",
    ErrorCode.STALE_NONCE: "its nonces expire at once",
    ErrorCode.ADDRESS_FAMILY_NOT_SUPPORTED: "it has no relayed addresses of this IP version",
    ErrorCode.WRONG_CREDENTIALS: "the allocation was made with another user name than the request was signed with",
    ErrorCode.UNSUPPORTED_TRANSPORT_PROTOCOL: "it does not relay this transport protocol",
    ErrorCode.PEER_ADDRESS_FAMILY_MISMATCH: "the relayed address is of another IP version than the peer's: "
    "allocate one of the peer's family, or both",
    ErrorCode.ALLOCATION_QUOTA_REACHED: "this user holds as many allocations as the server allows: "
    "close some, or wait until they expire",
    ErrorCode.SERVER_ERROR: "an internal error; try again later",
    ErrorCode.INSUFFICIENT_CAPACITY: "it has no free port, or not the reserved one: "
    "try another server, or try again later",
}

DONE: Final[Mapping[int, str]] = {
    Method.ALLOCATE: "to allocate",
    Method.REFRESH: "to refresh the allocation",
    Method.CREATE_PERMISSION: "to permit the peer",
    Method.CHANNEL_BIND: "to bind a channel",
}


def refusal(server: object, method: int, error: StunError) -> str:
    """Return one line: the server, the refused request, the error and its explanation."""
    meaning = MEANINGS.get(error.code, "")
    return f"{server} refused {DONE.get(method, 'the request')}: {error}" + (f" ({meaning})" if meaning else "")
