"""`polynya relay`: allocates a relayed address on a TURN server and echoes datagrams of its peers."""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from polynya import ConfigurationError, ConnectionClosed, Redactor, TransactionError
from polynya.aio.turn import TurnClient
from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.turn.client import Allocated

from . import common
from .common import PcapOption, RedactOption, TraceOption, say

_TIME_LIMITED: Final = re.compile("([0-9]{9,12}:.+|.+:[0-9]{9,12}):([A-Za-z0-9+/]{27}=)", re.DOTALL)
"""Time-limited credentials, as `polynya credentials` makes them."""


def relay(
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="turn:HOST[:PORT][?transport=tcp], or turns: for TLS (RFC 7065).")
    ],
    *,
    user: Annotated[
        str | None,
        typer.Option(
            "--user", "-u", envvar="POLYNYA_TURN_USER", metavar="NAME:PASSWORD", help="Credentials for the server."
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", "-p", metavar="ADDR[:PORT]", help="Permit this peer; may be repeated."),
    ] = None,
    channel: Annotated[
        bool, typer.Option("--channel", help="Bind a channel to each peer; each --peer needs a port.")
    ] = False,
    family: Annotated[
        list[int] | None,
        typer.Option(
            "--family", "-f", min=4, max=6, metavar="4|6", help="IP version of the relayed address; may be repeated."
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Allocate, print the address, free it and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the allocation as one JSON document.")] = False,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="Trust these certificate authorities for turns:.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", "-t", min=0.1, help="Seconds for the server to allocate.")
    ] = 45.0,
    trace: TraceOption = None,
    pcap: PcapOption = None,
    redact: RedactOption = False,
) -> None:
    """Allocate a relayed address on a TURN server, print it, and echo datagrams of permitted peers.

    The server relays datagrams of permitted peers only: name each with --peer.
    The command ends when it is interrupted or the allocation is lost.

    Exit codes: 0 success, 1 no allocation or a lost one, 2 wrong use,
    130 interrupted.
    """
    with common.errors(), common.tracing("relay", trace, pcap, Redactor() if redact else None) as (tracer, capture):
        username, password = split_login(user or "")
        client = TurnClient(
            uri,
            username=username,
            password=password,
            families=tuple(dict.fromkeys(family)) if family else (4,),
            tls=None if ca is None else _trusting(ca),
            trace=tracer,
            capture=capture,
        )
        common.run(_relay(client, _Options(_peers(peer or [], ports=channel), channel, once, as_json, timeout)))


@dataclass(frozen=True, slots=True)
class _Options:
    peers: tuple[Address, ...]
    channel: bool
    once: bool
    as_json: bool
    timeout: float


async def _relay(client: TurnClient, chosen: _Options) -> int:
    allocation = await client.allocate(chosen.timeout)
    try:
        _show(allocation, as_json=chosen.as_json)
        if chosen.once:
            return 0
        peers = [peer for peer in chosen.peers if await _permit(client, peer, channel=chosen.channel)]
        if not peers:
            say("no peer is permitted to send: name peers with --peer")
        elif not chosen.as_json:
            say(f"echoing datagrams from {', '.join(map(str, peers))}")
        return await _echo(client, quiet=chosen.as_json)
    finally:
        await client.close()


def _show(allocation: Allocated, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_json(allocation)), flush=True)
        return
    for address in allocation.relayed:
        print(address, flush=True)
    seen = f"; our address at the server is {allocation.mapped}" if allocation.mapped is not None else ""
    say(f"relayed by {allocation.server}, lifetime {allocation.lifetime} s{seen}")
    for refused in allocation.refused:
        say(f"no IPv{refused.family} address: {refused.code} {refused.reason}")


async def _permit(client: TurnClient, peer: Address, *, channel: bool) -> bool:
    try:
        await (client.bind(peer) if channel else client.permit(peer))
    except TransactionError as error:
        say(f"{peer.host}: {error}")
        return False
    return True


async def _echo(client: TurnClient, *, quiet: bool) -> int:
    count = 0
    try:
        while True:
            data, peer = await client.recv()
            client.send(peer, data)
            count += 1
    except ConnectionClosed as error:
        say(f"polynya: {error}")
        return common.FAILED
    finally:
        if not quiet:
            say(f"{count} datagrams echoed")


def split_login(text: str) -> tuple[str, str]:
    """Split NAME:PASSWORD. The name of time-limited credentials has a colon itself; their password is an HMAC-SHA1."""
    limited = _TIME_LIMITED.fullmatch(text)
    name, _, password = text.partition(":")
    return (limited[1], limited[2]) if limited else (name, password)


def _peers(texts: list[str], *, ports: bool) -> tuple[Address, ...]:
    try:
        peers = tuple(Address.parse(text, 0) for text in texts)
    except DecodeError as error:
        raise typer.BadParameter(str(error), param_hint="--peer") from None
    if ports and not all(peer.port for peer in peers):
        raise typer.BadParameter("a channel needs the peer's port: write ADDR:PORT", param_hint="--peer")
    return peers


def _trusting(authorities: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=authorities)
    except OSError as error:  # which SSLError is, too
        raise ConfigurationError(f"cannot read certificates from {authorities}: {error}") from None
    context.set_alpn_protocols(["stun.turn"])
    return context


def _json(allocation: Allocated) -> dict[str, Any]:
    return {
        "relayed": [str(address) for address in allocation.relayed],
        "mapped": None if allocation.mapped is None else str(allocation.mapped),
        "lifetime": allocation.lifetime,
        "server": str(allocation.server.address),
        "transport": allocation.server.transport.value,
        "software": allocation.software,
        "refused": [
            {"family": refused.family, "code": int(refused.code), "reason": refused.reason}
            for refused in allocation.refused
        ],
    }
