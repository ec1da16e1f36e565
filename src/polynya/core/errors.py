"""The one tree of errors. A message says what happened, to what, and what can be done.

    PolynyaError
      ConfigurationError          the caller asked for something that cannot be
      UsageError                  a call at the wrong time; says which call comes first
      ProtocolError
        DecodeError               bytes or text that are not what they should be
        TransactionError          a request was answered with an error, or not at all
      SignalingError              the signaling server refused, or went away
      ConnectError                no pair works; carries every attempt and why it failed
      ConnectionClosed            the connection is over, and why

Machines never raise on input from the network. They raise only for a programming error of the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PolynyaError(Exception):
    """Base of every error that Polynya raises on purpose."""


class ConfigurationError(PolynyaError, ValueError):
    """An option, address, URI or file that cannot be used; raised before anything is opened."""


class UsageError(PolynyaError, RuntimeError):
    """A call that does not fit the state of the object it was made on."""


class ProtocolError(PolynyaError):
    """Something that was received, or not received, against the rules of a protocol."""


class DecodeError(ProtocolError, ValueError):
    """Bytes or text that cannot be decoded. The one error that every decoder raises."""


class TransactionError(ProtocolError):
    """A request failed. `code` is the STUN error code, or None when no answer came."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"{code} {reason}" if code is not None else reason)
        self.code = code
        self.reason = reason


class SignalingError(PolynyaError):
    """The signaling server refused a request or the connection to it was lost."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One thing that was tried on the way to a connection, and why it did not work."""

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


class ConnectError(PolynyaError, ConnectionError):
    """No connection was found. `attempts` lists what was tried and why each failed."""

    def __init__(self, message: str, attempts: Sequence[Attempt] = ()) -> None:
        super().__init__("\n  ".join([message, *map(str, attempts)]))
        self.message = message
        self.attempts = tuple(attempts)


class ConnectionClosed(PolynyaError, ConnectionError):
    """The connection is over: closed here, closed by the agent, or lost. `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
