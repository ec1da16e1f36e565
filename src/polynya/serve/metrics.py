"""Metrics for Prometheus, read from the parts of the server at each scrape.

Label values are names in our own code, never text from a client (security.md, line 11).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .relaying import Relaying

_GAUGES: Final = {
    "members": "Members of signaling rooms.",
    "rooms": "Signaling rooms.",
    "links": "Open signaling WebSockets.",
    "closing": "Signaling WebSockets that the server has closed and whose connections still exist.",
}


class MetricsSource(Protocol):
    """The parts of a server that the metrics read; `Server` has them."""

    stopping: bool
    relaying: Relaying | None

    @property
    def socket_counters(self) -> Mapping[str, int]: ...

    @property
    def answered(self) -> Mapping[str, int]: ...

    @property
    def signaling_counters(self) -> Mapping[str, int]: ...


class Metrics:
    """Renders the text of /metrics."""

    def __init__(self, server: MetricsSource) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(server))
        ProcessCollector(namespace="polynya", registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


class _Collector(Collector):
    def __init__(self, server: MetricsSource) -> None:
        self._server = server

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        server = self._server
        info = GaugeMetricFamily("polynya_info", "Version of the running server.", labels=["version"])
        info.add_metric([version("polynya")], 1)
        yield info
        draining = GaugeMetricFamily("polynya_draining", "1 while the server drains or shuts down.")
        draining.add_metric([], int(server.stopping))
        yield draining
        yield _counted("polynya_sockets", "Counters of the STUN and TURN sockets.", server.socket_counters)
        yield from self._turn()
        yield from self._signaling()

    def _turn(self) -> Iterator[Metric]:
        relaying = self._server.relaying
        if relaying is None:
            yield _counted("polynya_stun_messages", "STUN messages, by result.", self._server.answered)
            return
        control, plane = relaying.machine.control, relaying.machine.plane
        live = GaugeMetricFamily("polynya_turn_allocations", "Current allocations.", labels=["transport"])
        by_stream = sum(each.stream for each in control.allocations.by_client.values())
        live.add_metric(["udp"], relaying.allocations - by_stream)
        live.add_metric(["tcp"], by_stream)
        yield live
        entries = GaugeMetricFamily(
            "polynya_turn_entries", "Entries in the tables of the data plane.", labels=["table"]
        )
        for table, count in plane.size.items():
            entries.add_metric([table], count)
        yield entries
        created = CounterMetricFamily("polynya_turn_allocations_created", "Allocations since the start of the server.")
        created.add_metric([], relaying.created)
        yield created
        yield _counted("polynya_turn_messages", "TURN messages, by result.", control.counters)
        yield _counted(
            "polynya_turn_not_forwarded", "Datagrams that were not forwarded, by reason.", plane.counters, "reason"
        )
        carried = relaying.carried
        datagrams = CounterMetricFamily("polynya_turn_datagrams", "Relayed datagrams.", labels=["direction"])
        payload = CounterMetricFamily("polynya_turn_bytes", "Relayed payload bytes.", labels=["direction"])
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
        yield _counted("polynya_signaling_messages", "Signaling messages, by result.", counters)


def _counted(name: str, text: str, counters: Mapping[str, int], label: str = "counter") -> Metric:
    """Return one metric for a part's counters, with the name of each as a label."""
    family = CounterMetricFamily(name, text, labels=[label])
    for counter, count in sorted(counters.items()):
        family.add_metric([counter], count)
    return family
