"""The addresses of this host are watched, so that the peer policy denies those that it gets while the server runs."""

from __future__ import annotations

import pytest

import polynya
from polynya.core.addresses import Address
from polynya.core.machine import Interface, InterfaceAddress
from polynya.serve import Server, own_addresses
from polynya.serve.own_addresses import OwnAddresses
from polynya.turn.server.policy import PeerPolicy

from .turn_house import client, config, options, turn_config


class Host:
    """A host whose addresses the test sets."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts

    def interfaces(self) -> tuple[Interface, ...]:
        addresses = tuple(InterfaceAddress(host=each, prefix_length=32) for each in self.hosts)
        return (Interface(name="eth0", index=2, addresses=addresses),)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host("127.0.0.1", "198.18.0.5")
    monkeypatch.setattr(own_addresses, "list_interfaces", made.interfaces)
    return made


async def test_a_change_is_reported_once(host: Host) -> None:
    seen: list[tuple[str, ...]] = []
    watch = OwnAddresses(seen.append)
    assert watch.start() == host.hosts
    watch.check()
    assert seen == []
    host.hosts = (*host.hosts, "198.18.0.6")
    watch.check()
    watch.check()
    assert seen == [host.hosts]
    watch.close()
    watch.close()


async def test_the_policy_denies_addresses_that_are_added_at_run_time(host: Host) -> None:
    policy = PeerPolicy(allow=("198.18.0.0/15",))
    async with Server(config(options(config=turn_config(policy=policy)))) as server, client(server) as relay:
        relaying = server.relaying
        assert relaying is not None
        old, new = Address("198.18.0.5", 22), Address("198.18.0.6", 22)
        with pytest.raises(polynya.TransactionError, match="403"):
            await relay.bind(old)
        await relay.bind(new)
        host.hosts = ("127.0.0.1", "198.18.0.6")
        relaying.addresses.check()
        with pytest.raises(polynya.TransactionError, match="403"):
            await relay.bind(new.with_port(23))
        await relay.permit(old)
        assert relaying.machine.control.policy.judge(new) and not relaying.machine.control.policy.judge(old)
        assert server.reload(server.config) == []
        assert relaying.machine.control.policy.judge(new), "a reload keeps them"
