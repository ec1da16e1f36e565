"""The options `interfaces` and `addresses`: names, or a callable that decides on each, become a filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from polynya.core.addresses import Address
from polynya.core.arguments import function, items, shown, text
from polynya.core.errors import ConfigurationError, DecodeError
from polynya.session.options import AddressFilter, InterfaceFilter

F = TypeVar("F")


def interface_filter(chosen: Sequence[str] | InterfaceFilter | None) -> InterfaceFilter | None:
    if chosen is None or callable(chosen):
        return _checked("interfaces", chosen)
    names = _texts("interfaces", chosen)
    return lambda interface: interface.name in names


def address_filter(chosen: Sequence[str] | AddressFilter | None) -> AddressFilter | None:
    if chosen is None or callable(chosen):
        return _checked("addresses", chosen)
    try:
        hosts = {Address.of(text, 0).host for text in _texts("addresses", chosen)}
    except DecodeError as error:
        raise ConfigurationError(f"addresses: {error}") from None
    return lambda _, address: address.host.partition("%")[0] in hosts


def _texts(option: str, chosen: Sequence[str]) -> frozenset[str]:
    if isinstance(chosen, str):
        raise ConfigurationError(f"{option} is a list or a callable: write {option}=[{shown(chosen)}]")
    texts = frozenset(text(f"each of {option}", each) for each in items(option, chosen))
    if not texts:
        raise ConfigurationError(f"{option} is empty, which would use none: None uses all")
    return texts


def _checked(option: str, chosen: F) -> F:
    if chosen is not None:
        function(option, chosen, plain=True)
    return chosen
