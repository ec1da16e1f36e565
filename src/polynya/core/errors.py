"""The exceptions of Polynya. A message says what happened, to what, and what can be done.

    PolynyaError
      ConfigurationError          an option, address, URI or file that cannot be used
      UsageError                  a call at the wrong time; the message names the call that must come first
      ProtocolError
        DecodeError               bytes or text that do not follow their format
        TransactionError          a request was answered with an error, or not answered
      SignalingError              the signaling server refused a request or disconnected
      ConnectError                no connection was found; lists every attempt and the reason of its failure
      ConnectionClosed            the connection is closed; gives the reason

Machines never raise for input from the network. They raise only for programming errors of the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PolynyaError(Exception):
    """Base class of Polynya's exceptions."""


class ConfigurationError(PolynyaError, ValueError):
    """An option, address, URI or file cannot be used; raised before any socket is opened."""


class UsageError(PolynyaError, RuntimeError):
    """A method was called in a state of the object that does not allow it."""


class ProtocolError(PolynyaError):
    """The other side violated a protocol, or did not answer."""


class DecodeError(ProtocolError, ValueError):
    """Bytes or text cannot be decoded; every decoder raises this exception."""


class TransactionError(ProtocolError):
    """A STUN or TURN request failed. `code` is the STUN error code, or None if there was no answer."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"{code} {reason}" if code is not None else reason)
        self.code = code
        self.reason = reason


class SignalingError(PolynyaError):
    """The signaling server refused a request, or the connection to it was lost."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A failed attempt to connect: a candidate pair or server, and the reason of the failure."""

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


class ConnectError(PolynyaError, ConnectionError):
    """No connection was found. `attempts` lists every attempt with the reason of its failure."""

    def __init__(self, message: str, attempts: Sequence[Attempt] = ()) -> None:
        super().__init__("\n  ".join([message, *map(str, attempts)]))
        self.message = message
        self.attempts = tuple(attempts)


class ConnectionClosed(PolynyaError, ConnectionError):
    """The connection is closed: by the caller, by the agent, or because it was lost. `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
