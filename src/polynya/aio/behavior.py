"""What kind of NAT is in the way, asked by sockets of this host (RFC 5780)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from random import SystemRandom
from typing import Any

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, ConnectError
from polynya.core.flows import FlowIds, Transport
from polynya.core.instants import nanoseconds
from polynya.core.machine import Resolve
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun import lifetime
from polynya.stun.behavior import PATIENT, BehaviorDiscovery, BehaviorReport
from polynya.stun.lifetime import LifetimeReport, MappingLifetime
from polynya.stun.stream_mapping import StreamMapping, StreamMappingReport
from polynya.stun.transactions import Schedule
from polynya.stun.uris import StunUri

from .dns import Resolver
from .driver import Driver
from .sockets import from_sockaddr, to_sockaddr
from .tcp import TlsContexts, system_tls


async def discover_behavior(
    server: str, *, local: str = "", schedule: Schedule = PATIENT, trace: Tracer = NO_TRACE
) -> BehaviorReport:
    """Ask a STUN server, as a URI (`stun:HOST:PORT`), how the NATs on the way to it map, filter and hairpin.

    `local` is the address to ask from; left out, the one that this host would use. It takes from a few round trips,
    where everything comes in, to some 20 s, where silence is the answer. What cannot be found out is None in the
    report, with the reason; all of it, when the server does not answer.

    Raises ConfigurationError for a URI that cannot be used, ConnectError when the server has no address that this host
    could send to.
    """
    place = await _place(server, local)
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
    longest: float = 600.0,
    resolution: float = 10.0,
    schedule: Schedule = lifetime.PATIENT,
    trace: Tracer = NO_TRACE,
) -> LifetimeReport:
    """Find out for how many seconds the NATs on the way to a STUN server keep a mapping that nobody uses.

    Times up to `longest` are tried until it is known to `resolution`, which takes minutes: see `MappingLifetime`.
    Raises what `discover_behavior` does.
    """
    place = await _place(server, local)
    flow_ids = FlowIds()
    machine = MappingLifetime(
        server=place,
        local=_local(place, local),
        flow_ids=flow_ids,
        random=SystemRandom(),
        longest=nanoseconds(longest),
        resolution=nanoseconds(resolution),
        schedule=schedule,
        trace=trace,
    )
    report: LifetimeReport = await _run(machine, flow_ids, trace)
    return report


async def discover_stream_mapping(
    servers: Sequence[str], *, local: str = "", tls: TlsContexts = system_tls, trace: Tracer = NO_TRACE
) -> StreamMappingReport:
    """Ask STUN servers by TCP (`stun:HOST:PORT`) or TLS (`stuns:HOST:PORT`) how the NATs on the way map streams.

    All are asked from one port, and any two will do; two ports of one of them, and a third at another address, tell the
    whole. `tls` makes the contexts for TLS. It takes a few
    round trips, or as long as the system tries to connect.

    Raises ConfigurationError for URIs that cannot be used together, ConnectError when a server has no address that this
    host could connect to.
    """
    uris = [StunUri.parse(server) for server in servers]
    if len(uris) < 2 or len({uri.secure for uri in uris}) != 1:
        raise ConfigurationError("give two servers or more, all stun: for TCP or all stuns: for TLS")
    places = [await _where(uris[0], local)]
    bound = _local(places[0], local)
    places += [await _where(uri, bound.host) for uri in uris[1:]]
    if len(set(places)) < len(places):
        raise ConfigurationError("two of the servers are one place, which tells the same twice")
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
    """A TCP port that nobody has at this moment."""
    with socket.socket(socket.AF_INET6 if local.family == 6 else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(to_sockaddr(local))
        return int(probe.getsockname()[1])


async def _run(machine: Any, flow_ids: FlowIds, trace: Tracer, tls: TlsContexts = system_tls) -> Any:
    """Let a machine run to its one event, which is its report."""
    found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    driver = Driver(machine, on_event=found.set_result, flow_ids=flow_ids, trace=trace, tls=tls)
    try:
        driver.call(machine.start)
        return await found
    finally:
        await driver.aclose()


async def _place(server: str, local: str) -> Address:
    """Where the server is, of the family of `local` if that is given."""
    uri = StunUri.parse(server)
    if uri.transport is not Transport.UDP:
        raise ConfigurationError(f"behavior discovery goes by UDP: {server} does not")
    return await _where(uri, local)


async def _where(uri: StunUri, local: str) -> Address:
    resolved = await Resolver().resolve(Resolve(name=uri.host))
    if resolved.error:
        raise ConnectError(f"the STUN server is not known: {resolved.error}")
    fitting = [host for host in resolved.hosts if not local or (":" in host) == (":" in local)]
    if not fitting:
        raise ConnectError(f"{uri} has no address of the family of {local}")
    return Address.of(fitting[0], uri.port)


def _local(server: Address, host: str) -> Address:
    """The address to ask from."""
    if host:
        return Address.of(host, 0)
    family = socket.AF_INET6 if server.family == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(to_sockaddr(server))
            return from_sockaddr(probe.getsockname()).with_port(0)
    except OSError as error:
        raise ConnectError(f"there is no way to {server}: {error.strerror or error}") from None
