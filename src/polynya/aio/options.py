"""From the options that `Agent` takes to those of a session: what cannot be is told before anything is opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from polynya.core.empty import NOTHING
from polynya.core.errors import ConfigurationError
from polynya.ice.config import IceConfig
from polynya.session.options import AddressFilter, InterfaceFilter, Policy, SessionConfig

from .filters import address_filter, interface_filter
from .servers import IceServer, split_servers


def session_config(
    *,
    servers: Iterable[str | IceServer],
    controlling: bool | None,
    components: Sequence[int] | None,
    policy: str,
    interfaces: Sequence[str] | InterfaceFilter | None,
    addresses: Sequence[str] | AddressFilter | None,
    families: Sequence[int],
    ports: tuple[int, int] | None,
    loopback: bool,
    external: Mapping[str, str] | None,
    ice: IceConfig | None,
) -> SessionConfig:
    """The options of a session; ConfigurationError for what cannot be."""
    try:
        chosen_policy = Policy(policy)
    except ValueError:
        raise ConfigurationError(f"a policy is all, no-host or relay, not {policy!r}") from None
    if isinstance(servers, str):
        raise ConfigurationError(f'servers is a list of URIs: write servers=["{servers}"]')
    stun_servers, turn_servers = split_servers(servers)
    config = SessionConfig(
        ice=_ice(ice, controlling, None if components is None else tuple(components)),
        stun_servers=stun_servers,
        turn_servers=turn_servers,
        policy=chosen_policy,
        families=tuple(families),
        interfaces=interface_filter(interfaces),
        addresses=address_filter(addresses),
        loopback=loopback,
        ports=ports,
        external=external or NOTHING,
    )
    return config if turn_servers or external else _shared(config)


@lru_cache(maxsize=16)
def _ice(given: IceConfig | None, controlling: bool | None, components: tuple[int, ...] | None) -> IceConfig:
    config = given or IceConfig()
    if controlling is not None:
        config = replace(config, controlling=bool(controlling))
    return config if components is None else replace(config, components=components)


@lru_cache(maxsize=16)
def _shared(config: SessionConfig) -> SessionConfig:
    """Agents with equal options share them. Not those that hold a password."""
    return config
