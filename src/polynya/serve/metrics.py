"""What Prometheus is told: read from the parts when it asks, so that it is what is true now.

Label values are names of our own code, never what a client said (security.md, line 11).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from .server import Server

_GAUGES: Final = {"members": "Members of rooms.", "rooms": "Rooms.", "links": "Open WebSockets."}


class Metrics:
    """The text that /metrics answers with."""

    def __init__(self, server: Server) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(server))
        ProcessCollector(namespace="polynya", registry=self._registry)

    def text(self) -> bytes:
        """The figures as they are now."""
        return generate_latest(self._registry)


class _Collector(Collector):
    def __init__(self, server: Server) -> None:
        self._server = server

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        """Every figure."""
        server = self._server
        info = GaugeMetricFamily("polynya_info", "The version that runs.", labels=["version"])
        info.add_metric([version("polynya")], 1)
        yield info
        draining = GaugeMetricFamily("polynya_draining", "1 while the server is on its way out.")
        draining.add_metric([], int(server.stopping))
        yield draining
        yield _counted("polynya_sockets", "What the sockets of STUN and TURN count.", server.socket_counters)
        yield from self._turn()
        yield from self._signaling()

    def _turn(self) -> Iterator[Metric]:
        relaying = self._server.relaying
        if relaying is None:
            yield _counted("polynya_stun_messages", "Messages to STUN, by what became of them.", self._server.answered)
            return
        control, plane = relaying.machine.control, relaying.machine.plane
        live = GaugeMetricFamily("polynya_turn_allocations", "Allocations that stand.", labels=["transport"])
        by_stream = sum(each.stream for each in control.allocations.by_client.values())
        live.add_metric(["udp"], relaying.allocations - by_stream)
        live.add_metric(["tcp"], by_stream)
        yield live
        held = GaugeMetricFamily("polynya_turn_held", "What the data plane holds.", labels=["what"])
        for what, count in plane.size.items():
            held.add_metric([what], count)
        yield held
        created = CounterMetricFamily("polynya_turn_allocations_created", "Allocations since the start.")
        created.add_metric([], relaying.created)
        yield created
        yield _counted("polynya_turn_messages", "Messages to TURN, by what became of them.", control.counters)
        yield _counted("polynya_turn_not_forwarded", "Datagrams that were not forwarded, by why.", plane.counters)
        carried = relaying.carried
        datagrams = CounterMetricFamily("polynya_turn_datagrams", "Datagrams that were relayed.", labels=["direction"])
        payload = CounterMetricFamily("polynya_turn_bytes", "Payload bytes that were relayed.", labels=["direction"])
        datagrams.add_metric(["to_peers"], carried.to_peers)
        datagrams.add_metric(["from_peers"], carried.from_peers)
        payload.add_metric(["to_peers"], carried.bytes_to_peers)
        payload.add_metric(["from_peers"], carried.bytes_from_peers)
        yield datagrams
        yield payload

    def _signaling(self) -> Iterator[Metric]:
        counters = dict(self._server.signaling_counters)
        for name, text in _GAUGES.items():
            if name in counters:
                gauge = GaugeMetricFamily(f"polynya_signaling_{name}", text)
                gauge.add_metric([], counters.pop(name))
                yield gauge
        yield _counted("polynya_signaling_messages", "What the signaling counts.", counters)


def _counted(name: str, text: str, counters: Mapping[str, int]) -> Metric:
    """Counters by the name that their part gives them."""
    family = CounterMetricFamily(name, text, labels=["what"])
    for what, count in sorted(counters.items()):
        family.add_metric([what], count)
    return family
