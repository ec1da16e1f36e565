"""`polynya serve`: STUN and signaling for others."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from . import common
from .common import TraceOption

if TYPE_CHECKING:
    from polynya.core.trace import Tracer
    from polynya.serve import ServerConfig

DEFAULT_LISTEN = ("0.0.0.0:3478", "[::]:3478")
DEFAULT_HTTP = ("0.0.0.0:8080",)


def serve(
    *,
    listen: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDR:PORT", help="Answer STUN over UDP here; may be repeated; port 0 is any."),
    ] = None,
    http: Annotated[
        list[str] | None, typer.Option(metavar="ADDR:PORT", help="Signaling and /healthz here; may be repeated.")
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A site whose web pages may use the signaling; may be repeated."),
    ] = None,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDR", help="A proxy whose X-Forwarded-For is believed; may be repeated."),
    ] = None,
    room_members: Annotated[int, typer.Option(min=2, max=256, help="The most members of a room.")] = 16,
    log_level: Annotated[str, typer.Option(metavar="debug|info|warning|error")] = "info",
    trace: TraceOption = None,
) -> None:
    """Run a server: STUN, and signaling over HTTP and WebSocket.

    Without --listen and --http it listens on all addresses: STUN on port 3478, HTTP on port 8080. With either, it
    listens on just what is given. One line on standard output, `ready stun=... http=...`, says that every listener
    accepts; the log goes to standard error. SIGTERM and SIGINT end it.
    """
    try:
        from polynya.serve import ServerConfig  # noqa: PLC0415
        from polynya.serve.log import configure  # noqa: PLC0415
        from polynya.signaling.limits import Limits  # noqa: PLC0415
    except ModuleNotFoundError as error:
        common.need("serve", error)
    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise typer.BadParameter("a level is debug, info, warning or error", param_hint="--log-level")
    configure(level=level)
    if not listen and not http:
        listen = [each for each in DEFAULT_LISTEN if socket.has_ipv6 or "[" not in each]
        http = list(DEFAULT_HTTP)
    with common.errors(), common.tracing("server", trace, None) as (tracer, _):
        config = ServerConfig(
            listen=common.addresses(listen or [], "--listen"),
            http=common.addresses(http or [], "--http"),
            limits=Limits(room_members=room_members),
            origins=tuple(origin or ()),
            trusted_proxies=tuple(trust_proxy or ()),
        )
        common.run(_serve(config, tracer), loop_factory=_fastest_loop())


async def _serve(config: ServerConfig, trace: Tracer) -> int:
    from polynya.serve import Server  # noqa: PLC0415

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Server(config, trace=trace) as server:
        print(server.ready_line, flush=True)
        await server.run_until(stop)
    return 0


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    return uvloop.new_event_loop
