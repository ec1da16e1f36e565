"""NAT behavior discovery (RFC 5780) on the sockets of this host."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from random import SystemRandom
from typing import Any

from polynya.core.addresses import Address
from polynya.core.arguments import families as versions_allowed
from polynya.core.arguments import function, instance, items, text
from polynya.core.errors import ConfigurationError, ConnectError, DecodeError
from polynya.core.flows import FlowIds, Transport
from polynya.core.instants import duration
from polynya.core.machine import Resolve
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun import lifetime
from polynya.stun.behavior import PATIENT, BehaviorDiscovery, BehaviorReport
from polynya.stun.lifetime import LifetimeReport, MappingLifetime
from polynya.stun.stream_mapping import StreamMapping, StreamMappingReport
from polynya.stun.transactions import Schedule
from polynya.stun.uris import StunUri

from .dns import ResolveName, Resolver
from .driver import Driver
from .options import FAMILIES, check_callables
from .sockets import from_sockaddr, to_sockaddr


async def discover_behavior(
    server: str,
    *,
    local: str = "",
    families: Sequence[int] = FAMILIES,
    resolve: ResolveName | None = None,
    schedule: Schedule = PATIENT,
    trace: Tracer = NO_TRACE,
) -> BehaviorReport:
    """Asks a STUN server how the NATs between here and there map, filter and hairpin.

    `server` is a URI, `stun:HOST[:PORT]`. `local` is the address to ask from; the default is the one that this host
    would use. `families` are the IP versions that may be used. `resolve` replaces the resolver of the system. It takes
    from a few round trips to some 20 s, where silence is the answer.

    What cannot be found out is None in the report, with the reason; all of it, if the server does not answer. Raises
    ConfigurationError for a URI that cannot be used, ConnectError if this host cannot send to the server.
    """
    _check(schedule, trace)
    place = await _place(server, local, families, resolve)
    flow_ids = FlowIds()
    machine = BehaviorDiscovery(
        server=place,
        local=_local(place, local),
        flow_ids=flow_ids,
        random=SystemRandom(),
        schedule=schedule,
        trace=trace,
    )
    report: BehaviorReport = await _run(machine, flow_ids, trace)
    return report


async def discover_lifetime(
    server: str,
    *,
    local: str = "",
    families: Sequence[int] = FAMILIES,
    longest: float = 600.0,
    resolution: float = 10.0,
    resolve: ResolveName | None = None,
    schedule: Schedule = lifetime.PATIENT,
    trace: Tracer = NO_TRACE,
) -> LifetimeReport:
    """Finds out for how many seconds the NATs on the way to a STUN server keep a mapping that nothing uses.

    Times up to `longest` seconds are tried until the lifetime is known to `resolution` seconds, which takes minutes:
    see `MappingLifetime`. The other options, and the errors, are those of `discover_behavior`.
    """
    _check(schedule, trace)
    place = await _place(server, local, families, resolve)
    flow_ids = FlowIds()
    machine = MappingLifetime(
        server=place,
        local=_local(place, local),
        flow_ids=flow_ids,
        random=SystemRandom(),
        longest=duration("longest", longest, above_zero=True),
        resolution=duration("resolution", resolution, above_zero=True),
        schedule=schedule,
        trace=trace,
    )
    report: LifetimeReport = await _run(machine, flow_ids, trace)
    return report


async def discover_stream_mapping(
    servers: Sequence[str],
    *,
    local: str = "",
    families: Sequence[int] = FAMILIES,
    tls: ssl.SSLContext | None = None,
    resolve: ResolveName | None = None,
    trace: Tracer = NO_TRACE,
) -> StreamMappingReport:
    """Asks STUN servers by TCP (`stun:HOST:PORT`) or TLS (`stuns:HOST:PORT`) how the NATs on the way map streams.

    All are asked from one port, and any two will do. Two ports of one server, and a third server at another address,
    answer the whole question. `tls` is the context for TLS; the default trusts the system's certificate authorities. It
    takes a few round trips, or as long as the system tries to connect.

    Raises ConfigurationError for URIs that cannot be used together, ConnectError if this host cannot connect to a
    server. The other options are those of `discover_behavior`.
    """
    check_callables(resolve=resolve, tls=tls, trace=trace)
    uris = [StunUri.parse(text("the URI of a server", server)) for server in items("servers", servers)]
    if len(uris) < 2 or len({uri.secure for uri in uris}) != 1:
        raise ConfigurationError("give two servers or more, all stun: for TCP or all stuns: for TLS")
    places = [await _where(uris[0], local, families, resolve)]
    bound = _local(places[0], local)
    places += [await _where(uri, bound.host, families, resolve) for uri in uris[1:]]
    if len(set(places)) < len(places):
        raise ConfigurationError("two of the servers are one address and port: the second answer would add nothing")
    flow_ids = FlowIds()
    machine = StreamMapping(
        servers=places,
        local=bound.with_port(_free_port(bound)),
        flow_ids=flow_ids,
        random=SystemRandom(),
        transport=Transport.TLS if uris[0].secure else Transport.TCP,
        names=[uri.host for uri in uris],
        trace=trace,
    )
    report: StreamMappingReport = await _run(machine, flow_ids, trace, tls)
    return report


def _free_port(local: Address) -> int:
    """Returns a TCP port that is free at this moment."""
    with socket.socket(socket.AF_INET6 if local.family == 6 else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(to_sockaddr(local))
        return int(probe.getsockname()[1])


async def _run(machine: Any, flow_ids: FlowIds, trace: Tracer, tls: ssl.SSLContext | None = None) -> Any:
    """Runs a machine until its one event, which is its report."""
    found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def on_event(report: Any) -> None:
        if not found.done():  # a canceled call may get its report before the sockets are closed
            found.set_result(report)

    driver = Driver(machine, on_event=on_event, flow_ids=flow_ids, trace=trace, tls=tls)
    try:
        driver.call(machine.start)
        return await found
    finally:
        await driver.aclose()


async def _place(server: str, local: str, families: Sequence[int], resolve: ResolveName | None) -> Address:
    """Returns the address of a server for UDP."""
    uri = StunUri.parse(text("server", server))
    if uri.transport is not Transport.UDP:
        raise ConfigurationError(f"behavior discovery goes by UDP: {server} does not")
    return await _where(uri, local, families, resolve)


async def _where(uri: StunUri, local: str, families: Sequence[int], resolve: ResolveName | None) -> Address:
    """Returns the first address of a server that is of the family of `local`, or of one of `families`."""
    versions_allowed(families)
    if resolve is not None:
        function("resolve", resolve)
    _host(local)
    resolved = await Resolver(resolve=resolve).resolve(Resolve(name=uri.host))
    if resolved.error:
        raise ConnectError(f"the STUN server has no address: {resolved.error}")
    wanted = [6 if ":" in local else 4] if local else families
    found = (Address.of(host, uri.port) for host in resolved.hosts)
    fitting = [address for address in found if address.family in wanted]
    if not fitting:
        versions = " or ".join(f"IPv{family}" for family in wanted)
        raise ConnectError(f"{uri} has no {versions} address")
    return fitting[0]


def _local(server: Address, host: str) -> Address:
    """Returns the address to ask from."""
    if host:
        return Address.of(_host(host), 0)
    family = socket.AF_INET6 if server.family == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(to_sockaddr(server))
            return from_sockaddr(probe.getsockname()).with_port(0)
    except OSError as error:
        raise ConnectError(f"this host cannot send to {server}: {error.strerror or error}") from None


def _host(local: str) -> str:
    """Returns the option `local`: an address without a port, or nothing."""
    try:
        if text("local", local):
            Address.of(local, 0)
    except DecodeError as error:
        raise ConfigurationError(f"local: {error}") from None
    return local


def _check(schedule: Schedule, trace: Tracer) -> None:
    check_callables(trace=trace)
    instance("schedule", schedule, Schedule, hint="write schedule=polynya.Schedule(...)")
