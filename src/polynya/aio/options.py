"""From the options of `Agent` and `Mux` to those of a session; wrong ones are refused before any socket is opened."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from inspect import isfunction
from typing import Any, Final

from polynya.core.arguments import flag, function, instance, shown
from polynya.core.errors import ConfigurationError
from polynya.core.trace import Tracer
from polynya.ice.config import IceConfig, check_components
from polynya.session.options import AddressFilter, InterfaceFilter, Policy, SessionConfig

from .filters import address_filter, interface_filter
from .servers import IceServer, split_servers

_NO_EXTERNAL: Final[Mapping[str, str]] = {}
FAMILIES: Final = (6, 4)
"""The default of every option `families`: both IP versions, IPv6 preferred (RFC 6724, RFC 8421)."""


def session_config(
    *,
    servers: Iterable[str | IceServer | Mapping[str, Any]],
    controlling: bool | None,
    components: Sequence[int] | None,
    policy: str,
    interfaces: Sequence[str] | InterfaceFilter | None,
    addresses: Sequence[str] | AddressFilter | None,
    families: Sequence[int],
    ports: tuple[int, int] | None,
    loopback: bool,
    nat_1to1: Mapping[str, str] | None,
    ice: IceConfig | None,
    ask: bool = False,
) -> SessionConfig:
    """Returns the options of a session. Raises ConfigurationError if an option is wrong or options conflict.

    `ask` says that credentials for TURN servers are asked for later, so that they may be missing here.
    """
    try:
        chosen_policy = Policy(policy)
    except ValueError:
        raise ConfigurationError(f"a policy is all, no-host or relay, not {shown(policy)}") from None
    if ice is not None:
        instance("ice", ice, IceConfig, hint="write ice=polynya.IceConfig(...)")
    if controlling is not None:
        flag("controlling", controlling)
    stun_servers, turn_servers = split_servers(servers, ask=ask)
    config = SessionConfig(
        ice=_ice(ice, controlling, None if components is None else check_components(components)),
        stun_servers=stun_servers,
        turn_servers=turn_servers,
        policy=chosen_policy,
        families=families,  # type: ignore[arg-type]  # it makes a tuple of any list
        interfaces=interface_filter(interfaces),
        addresses=address_filter(addresses),
        loopback=loopback,
        ports=ports,
        external=_NO_EXTERNAL if nat_1to1 is None else nat_1to1,
    )
    shared = not turn_servers and not nat_1to1 and interfaces is None and addresses is None
    return _shared(config) if shared else config


def check_callables(
    *, credentials: object = None, resolve: object = None, tls: object = None, trace: object, capture: object = None
) -> None:
    """Raises ConfigurationError if one of the options that programs implement cannot be used."""
    for name, given in (("credentials", credentials), ("resolve", resolve)):
        if given is not None:
            function(name, given)
    if capture is not None:
        function("capture", capture, plain=True)
    if isfunction(tls):  # it makes the context of each stream
        function("tls", tls, plain=True)
    elif tls is not None:
        instance("tls", tls, ssl.SSLContext, hint="write tls=ssl.create_default_context()")
    instance("trace", trace, Tracer, hint="write trace=polynya.Tracer(polynya.TraceWriter(file))")


@lru_cache(maxsize=16)
def _ice(given: IceConfig | None, controlling: bool | None, components: tuple[int, ...] | None) -> IceConfig:
    config = given or IceConfig()
    if controlling is not None:
        config = replace(config, controlling=controlling)
    return config if components is None else replace(config, components=components)


@lru_cache(maxsize=16)
def _shared(config: SessionConfig) -> SessionConfig:
    """Agents with equal options share one object; options with a password are not kept here."""
    return config
