"""`polynya gather`: prints the candidates of this host."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polynya import Address, Agent, Candidate, IceServer, Redactor
from polynya.core.addresses import scope

from . import common
from .common import (
    FamilyOption,
    InterfaceOption,
    LoopbackOption,
    PcapOption,
    PolicyOption,
    RedactOption,
    ServerOption,
    StunOption,
    TokenOption,
    TraceOption,
)

if TYPE_CHECKING:
    from polynya.aio.signaling import ServerOffer


def gather(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
    server: ServerOption = None,
    token: TokenOption = None,
    stun: StunOption = None,
    interface: InterfaceOption = None,
    family: FamilyOption = None,
    loopback: LoopbackOption = None,
    policy: PolicyOption = "all",
    trace: TraceOption = None,
    pcap: PcapOption = None,
    redact: RedactOption = False,
) -> None:
    """Print the candidates of this host: host, server-reflexive and relayed addresses.

    Uses the STUN and TURN servers that the signaling server announces, and
    those of --stun. A line has type, address, base and priority of a candidate.
    """
    redactor = Redactor() if redact else None
    with common.errors(), common.tracing("gather", trace, pcap, redactor) as (tracer, capture):
        options = {
            "families": common.families(family),
            "interfaces": common.interfaces(interface),
            "policy": policy,
            "trace": tracer,
            "capture": capture,
        }
        common.run(_gather(_Options(as_json, server, token, stun or [], loopback, redactor, options)))


@dataclass(frozen=True, slots=True)
class _Options:
    as_json: bool
    server: str | None
    token: str | None
    stun: list[str]
    loopback: bool | None
    redactor: Redactor | None
    options: dict[str, Any] = field(default_factory=dict)


async def _gather(chosen: _Options) -> int:
    servers: list[str | IceServer] = [*dict.fromkeys(chosen.stun)]
    loopback = bool(chosen.loopback)
    if chosen.server is not None:
        offer = await _ask_server(chosen.server, chosen.token)
        servers = [*(each for each in offer.servers if each.uri not in chosen.stun), *servers]
        loopback = offer.loopback if chosen.loopback is None else chosen.loopback
        if offer.no_relay and not chosen.as_json:
            common.say(f"no relay: {ascii(offer.no_relay)[1:-1]}")
    async with Agent(servers=servers, loopback=loopback, **chosen.options) as agent:
        candidates = []
        async for found in agent.candidates():
            candidate = found
            if chosen.redactor is not None:
                candidate = Candidate.parse(chosen.redactor.text(str(found)))
            candidates.append(candidate)
            if not chosen.as_json:
                print(_line(candidate), flush=True)
        why = agent.why()
        report = (why if chosen.redactor is None else why.redacted(chosen.redactor)).data["gathering"]
    unanswered = bool(servers) and all(answer["mapped"] is None for answer in report["servers"])
    code = common.FAILED if unanswered or not candidates else 0
    if chosen.as_json:
        print(json.dumps({"candidates": [_json(each) for each in candidates], **report}, indent=2))
        return code
    if not servers:
        common.say("no STUN server is known: use --stun stun:HOST or --server http://HOST:PORT")
    for answer in report["servers"]:
        if answer["mapped"] is None:
            common.say(f"{answer['server']} from {_base(answer['base'])}: {answer['reason']}")
    if unanswered:
        common.say("no server answered: only addresses of this host are known")
    if not candidates:
        common.say("no candidate: check that an interface is up, or use --loopback for loopback addresses")
    return code


async def _ask_server(url: str, token: str | None) -> ServerOffer:
    """Return the servers that a signaling server announces."""
    try:
        from polynya.aio.signaling import fetch_servers  # noqa: PLC0415
    except ModuleNotFoundError as error:
        common.need("signaling", error)
    return await fetch_servers(url, token=token)


def _base(text: str | None) -> str:
    """Return the base of an answer for people; a stream that was not opened has none."""
    if text is None or scope(Address.parse(text).host) == "unspecified":
        return "this host"
    return text


def _line(candidate: Candidate) -> str:
    related = candidate.related
    base = "" if related is None or scope(related.host) == "unspecified" else f"from {related}"
    return f"{candidate.type.value:5}  {candidate.address!s:46}  {base:40}  {candidate.priority}".rstrip()


def _json(candidate: Candidate) -> dict[str, Any]:
    return {
        "type": candidate.type.value,
        "address": candidate.address.host,
        "port": candidate.address.port,
        "related": None if candidate.related is None else str(candidate.related),
        "transport": candidate.transport,
        "component": candidate.component,
        "priority": candidate.priority,
        "foundation": candidate.foundation,
        "sdp": str(candidate),
    }
