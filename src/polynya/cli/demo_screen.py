"""The output of `polynya demo`: a line for each event, panels of both peers, the NAT table.

On a terminal the panels are below the lines and change in place. Elsewhere the panels are printed once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table as Grid
from rich.text import Text

from polynya.core.instants import Instant, in_seconds
from polynya.core.trace import TraceEvent
from polynya.demo.nats import Cell, Table
from polynya.demo.result import MeetingResult, PeerResult
from polynya.demo.run import Notice, PeerChanged, PeerStarted, PeerTalked, ServerReady
from polynya.demo.watch import PairRow, PeerView
from polynya.nat import every_class

FLAGS = ("writable", "readable", "valid", "nominated")
WIDTH = 80
"""The width of the output in columns."""

LETTERS = {"host": "h", "srflx": "s", "prflx": "p", "relay": "r"}


class Screen:
    """The display of one run. Use it as a context manager; pass it notices and cells as they arrive."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._views: dict[str, PeerView] = {}
        self._pids: dict[str, int] = {}
        self._cells: list[Cell] = []
        self._began: Instant | None = None

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._below, console=self._console, transient=True, refresh_per_second=10)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show_notice(self, notice: Notice) -> None:
        """Show a notice of the meeting."""
        match notice:
            case ServerReady():
                self._title("Two processes on this machine connect and exchange messages")
                self._print(f"server   STUN {', '.join(notice.stun)}")
                self._print(f"         signaling {notice.url}")
            case PeerStarted():
                self._pids[notice.name] = notice.pid
                self._print(f"{notice.name:8} is process {notice.pid}")
            case PeerChanged():
                self._views[notice.view.name] = notice.view
                self._event(notice.event)
            case PeerTalked():
                self._views[notice.view.name] = notice.view

    def show_cell(self, cell: Cell) -> None:
        """Show a finished cell of the table."""
        self._cells.append(cell)

    def show_meeting(self, result: MeetingResult) -> None:
        """Show both peers and the summary of a meeting."""
        for peer in result.peers:
            self._console.print(_panel(_final_view(peer, self._views), peer.pid, peer))
        self._console.print(_summary(result))
        for peer in result.peers:
            if not result.ok:
                self._failure(peer)

    def show_table(self, table: Table) -> None:
        """Show the complete NAT table."""
        self._title("Every NAT against every other, in the virtual network")
        self._console.print(_grid(table.cells, table.classes))
        self._console.print(_legend(table))

    def show_verdict(self, faults: Iterable[str], seconds: float) -> None:
        """Show the faults, or success."""
        sentences = list(faults)
        if not sentences:
            self._console.print(Text(f"Success: all as predicted, in {seconds:.1f} s.", style="bold green"))
        for sentence in sentences:
            self._console.print(Text(f"FAILED: {sentence}", style="bold red"))

    def begin_table(self) -> None:
        """Show the NAT table in place of the panels."""
        self._views.clear()

    # -------------------------------------------------------------------------------------------------------- inside

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _title(self, text: str) -> None:
        self._console.print()
        self._console.rule(Text(text, style="bold"), align="left", characters="-")

    def _event(self, event: TraceEvent) -> None:
        line = _line(event)
        if line is None:
            return
        if self._began is None:
            self._began = event.at
        text, style = line
        seconds = in_seconds(event.at - self._began)
        shown = Text.assemble((f"{seconds:7.3f} s ", "dim"), (f"{event.node:6}", "bold"), (text, style))
        self._console.print(shown, soft_wrap=True)

    def _below(self) -> RenderableType:
        if self._views:
            return Group(*(_panel(view, self._pids.get(name)) for name, view in sorted(self._views.items())))
        if self._cells:
            return _grid(self._cells, tuple(config.label for config in every_class()))
        return Text("")

    def _failure(self, peer: PeerResult) -> None:
        """Show the report and the errors of a peer that failed."""
        texts = [peer.outcome.why] if peer.outcome is not None else []
        texts += [peer.errors] if peer.errors else []
        for text in texts:
            self._console.print(Panel(Text(text), title=f"report of {peer.name}", title_align="left", style="red"))


# --------------------------------------------------------------------------------------------------------- the meeting


def _line(event: TraceEvent) -> tuple[str, str] | None:
    """Return the line for an event and its style; None for an event that is not shown."""
    fields: dict[str, Any] = event.fields
    match event.kind:
        case "gathering":
            return f"gathering{' complete' * (fields['new'] == 'complete')}: {event.reason}", ""
        case "candidate" if fields["side"] == "local":
            return f"candidate {_short(fields['candidate'])}: {event.reason}", "cyan"
        case "server":
            return f"server {fields['server']}: {event.reason}", ""
        case "agent":
            return f"{fields['new']}: {event.reason}", "bold green" if fields["new"] in (
                "connected",
                "completed",
            ) else ""
        case "pair" if fields["old"] is None:
            return f"pair {fields['pair']} new: {fields['local']} -> {fields['remote']}", "yellow"
        case "pair":
            return f"pair {fields['pair']} {fields['old']} -> {fields['new']}: {event.reason}", "yellow"
        case "pair-flags":
            flags = " ".join(flag for flag in FLAGS if fields[flag]) or "no flags"
            return f"pair {fields['pair']} is {flags}: {event.reason}", "green"
        case "selected" if fields["pair"] is not None:
            return f"data goes over pair {fields['pair']}: {event.reason}", "bold cyan"
        case "role" | "consent" | "message-dropped" | "icmp":
            return f"{event.kind}: {event.reason}", "red"
        case _:
            return None


def _short(candidate: str) -> str:
    """Shorten an SDP candidate to `host 127.0.0.1:4000`; return any other text unchanged."""
    parts = candidate.split()
    if not candidate.startswith("candidate:") or len(parts) < 8:
        return candidate
    host = f"[{parts[4]}]" if ":" in parts[4] else parts[4]
    return f"{parts[7]} {host}:{parts[5]}"


def _final_view(peer: PeerResult, views: dict[str, PeerView]) -> PeerView:
    """Return the state of a peer with the final pairs and counts of its outcome."""
    view = views.get(peer.name) or PeerView(peer.name)
    outcome = peer.outcome
    if outcome is not None:
        view.pairs = {pair.id: PairRow.of(pair) for pair in outcome.pairs}
        view.sent, view.received = outcome.messages.sent, outcome.messages.received
    return view


def _panel(view: PeerView, pid: int | None, peer: PeerResult | None = None) -> Panel:
    parts: list[RenderableType] = []
    candidates = Grid.grid(padding=(0, 2))
    for label, note in view.candidates.items():
        candidates.add_row(Text("candidate", style="dim"), Text(label, style="cyan"), Text(note, style="dim"))
    parts.append(candidates)
    if view.pairs:
        parts.append(_pairs(view.pairs))
    title = f"{view.name}" + (f", process {pid}" if pid else "")
    title += f": {_role(peer)}{view.state}"
    counts = f"{view.sent} messages sent, {view.received} received" if view.sent or view.received else None
    return Panel(Group(*parts), title=title, title_align="left", subtitle=counts, subtitle_align="left", width=WIDTH)


def _role(peer: PeerResult | None) -> str:
    if peer is None or peer.outcome is None or peer.outcome.controlling is None:
        return ""
    return "controlling, " if peer.outcome.controlling else "controlled, "


def _pairs(pairs: dict[int, PairRow]) -> Grid:
    grid = Grid(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    for heading in ("#", "local -> remote", "state and priority", "flags"):
        grid.add_column(heading, no_wrap=True)
    for number, pair in pairs.items():
        flags = [flag for flag in FLAGS if getattr(pair, flag)]
        style = "bold green" if pair.nominated else "green" if pair.valid else "red" if pair.state == "failed" else ""
        mark = "*" if pair.selected else " "
        grid.add_row(
            Text(f"{mark}{number}", style=style),
            Text(f"{pair.local}\n-> {pair.remote}"),
            Text.assemble((pair.state, style), "\n", (str(pair.priority), "dim")),
            Text(" ".join(flags[:2]) + "\n" + " ".join(flags[2:]), style=style),
        )
    return grid


def _summary(result: MeetingResult) -> RenderableType:
    lines = Grid.grid(padding=(0, 2))
    lines.add_column(style="bold", no_wrap=True)
    for peer in result.peers:
        if (pair := peer.selected) is not None:
            how = "nominated" if pair.nominated else "NOT nominated"
            rtt = "" if pair.rtt_ms is None else f", rtt {pair.rtt_ms:.1f} ms"
            lines.add_row(peer.name, f"{pair.local} -> {pair.remote}, {how}{rtt}")
    for peer in result.peers:
        times = peer.times
        lines.add_row(
            peer.name,
            f"gathered in {_ms(times.gathered)}, valid pair after {_ms(times.first_valid_pair)}, "
            f"nominated after {_ms(times.nominated)}",
        )
    for peer in result.peers:
        if peer.outcome is not None:
            counts = peer.outcome.messages
            latency = "" if counts.latency_ms is None else f", median latency {counts.latency_ms:.2f} ms"
            wrong = f", {counts.wrong} WRONG" if counts.wrong else ""
            text = f"sent {counts.sent} messages, received and verified {counts.received}{wrong}{latency}"
            lines.add_row(peer.name, text)
    same = "the same pair" if result.same_pair else "DIFFERENT pairs"
    lines.add_row("both", f"on {same}; {result.data_datagrams} datagrams of data between them, end to end")
    lines.add_row("server", f"{result.server_datagrams} STUN datagrams, {result.server_data_datagrams} of data")
    return Group(Text("* the selected pair; times are since each side started to gather", style="dim"), lines)


def _ms(seconds: float | None) -> str:
    return "(never)" if seconds is None else f"{seconds * 1000:.0f} ms"


# ----------------------------------------------------------------------------------------------------------- the table


def _grid(cells: Iterable[Cell], classes: tuple[str, ...]) -> Grid:
    """Build the NAT table: a row for each class of the first NAT, a column for each of the second."""
    by_row: dict[str, list[Text]] = {label: [] for label in classes}
    for cell in cells:
        by_row.setdefault(cell.row.first, []).append(_cell(cell))
    grid = Grid(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    grid.add_column("", style="bold", no_wrap=True)
    for label in classes:
        grid.add_column(label, no_wrap=True, min_width=7)
    for label, row in by_row.items():
        grid.add_row(label, *row)
    return grid


def _cell(cell: Cell) -> Text:
    row = cell.row
    if cell.differs:
        return Text("DIFFERS", style="bold white on red")
    if not row.connected or row.first_pair is None or row.seconds is None:
        return Text("-", style="dim")
    local, _, remote = row.first_pair.partition(" -> ")
    return Text(f"{LETTERS[local]}{LETTERS[remote]} {_round_up(row.seconds)}", style="green")


def _round_up(seconds: float) -> str:
    """Format with two decimals, rounded up."""
    return f"{math.ceil(seconds * 100) / 100:.2f}"


def _legend(table: Table) -> RenderableType:
    agreement = "each as predicted" if table.ok else "NOT all as predicted"
    return Group(
        Text("NAT class: mapping/filtering. EI is endpoint-independent, AD address-dependent,"),
        Text("APD address-and-port-dependent. RFC 3489 calls EI/EI a full cone, EI/AD a"),
        Text("restricted cone, EI/APD a port-restricted cone, APD/APD a symmetric NAT."),
        Text("sp 0.14: the row's side connected from its srflx candidate to a prflx candidate"),
        Text("after 0.14 s of virtual time.  -: no direct path; a relay is needed."),
        Text(
            f"{len(table.cells)} runs in {table.seconds:.1f} s, {table.connected} connected, {agreement}",
            style="bold green" if table.ok else "bold red",
        ),
    )
