"""`polynya serve`: a STUN, TURN and signaling server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from polynya.core.errors import ConfigurationError, PolynyaError

from . import common
from .common import TraceOption
from .credentials import SECRET_VARIABLE

if TYPE_CHECKING:
    from polynya.core.trace import Tracer
    from polynya.serve.settings import Flags

Some = list[str] | None

GARBAGE: Final = 20_000
"""New objects between two garbage collections: the objects of a request have no reference cycles."""


def serve(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Read settings from this TOML file.")
    ] = None,
    listen: Annotated[
        Some,
        typer.Option(metavar="ADDR:PORT", help="STUN over UDP, TURN over UDP and TCP; repeatable; port 0: any."),
    ] = None,
    tls_listen: Annotated[Some, typer.Option(metavar="ADDR:PORT", help="TURN over TLS; repeatable.")] = None,
    http: Annotated[Some, typer.Option(metavar="ADDR:PORT", help="Signaling and /healthz; repeatable.")] = None,
    admin: Annotated[
        Some, typer.Option(metavar="ADDR:PORT", help="Metrics for Prometheus at /metrics; repeatable; off by default.")
    ] = None,
    stun_alternate: Annotated[
        Some,
        typer.Option(
            metavar="ADDR:PORT", help="Alternate for NAT behavior discovery (RFC 5780); one for each IP version."
        ),
    ] = None,
    user: Annotated[Some, typer.Option(metavar="NAME:PASSWORD", help="A TURN user; repeatable.")] = None,
    shared_secret: Annotated[
        Some,
        typer.Option(
            metavar="SECRET", help="For time-limited TURN credentials; repeatable; also POLYNYA_SHARED_SECRET."
        ),
    ] = None,
    shared_secret_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with shared secrets, one on each line.")
    ] = None,
    realm: Annotated[str | None, typer.Option(metavar="NAME", help="Realm of the TURN users.")] = None,
    relay_ip: Annotated[Some, typer.Option(metavar="ADDR", help="Local address to relay on; repeatable.")] = None,
    external_ip: Annotated[
        Some,
        typer.Option(metavar="ADDR[/RELAY]", help="External address of a relay address behind a NAT; repeatable."),
    ] = None,
    ports: Annotated[str | None, typer.Option(metavar="LOW-HIGH", help="Range of the relay ports.")] = None,
    allow_peer: Annotated[
        Some,
        typer.Option(metavar="CIDR", help="Non-public peer addresses that clients may reach; repeatable."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate with its chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Key of the certificate, PEM.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Worker processes that relay; default 0: the server's own process."),
    ] = None,
    drain: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="Seconds to keep existing allocations after SIGTERM."),
    ] = None,
    room_token: Annotated[
        Some,
        typer.Option(
            metavar="TOKEN",
            envvar="POLYNYA_ROOM_TOKEN",
            help="Token that clients must show to use rooms and get TURN credentials; repeatable.",
        ),
    ] = None,
    room_token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with room tokens, one on each line.")
    ] = None,
    open_turn: Annotated[
        bool, typer.Option("--open-turn", help="Give TURN credentials to any visitor, with limits on their traffic.")
    ] = False,
    origin: Annotated[
        Some, typer.Option(metavar="URL", help="Origin whose web pages may use signaling; repeatable.")
    ] = None,
    trust_proxy: Annotated[
        Some, typer.Option(metavar="ADDR", help="Proxy whose X-Forwarded-For is trusted; repeatable.")
    ] = None,
    room_members: Annotated[
        int | None, typer.Option(metavar="N", min=2, max=256, help="Members of one room at most.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings, with secrets masked, and exit.")
    ] = False,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Check the settings and exit: 0 valid, 2 invalid.")
    ] = False,
    hash_user: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Prompt for a password, print the user's line for a users file, and exit."),
    ] = None,
    trace: TraceOption = None,
) -> None:
    """Run a server: STUN, TURN, and signaling over HTTP and WebSocket.

    TURN is enabled if it has users: set users or a shared secret. Flags
    override the file. By default the server listens on all addresses: STUN
    and TURN on port 3478, HTTP on port 8080.

    When all listeners are open, the server prints one line to standard output:
    `ready stun=... turn=... http=...`. The log goes to standard error. SIGHUP
    reads the file and the certificates again without ending sessions, SIGUSR2
    only the certificates. SIGTERM and SIGINT stop the server; a second one stops
    it at once. SIGUSR1 stops it when the last allocation has ended.
    """
    try:
        from polynya.serve import settings  # noqa: PLC0415
    except ModuleNotFoundError as error:
        common.need("serve", error)
    if log_level is not None and log_level.lower() not in ("debug", "info", "warning", "error"):
        raise typer.BadParameter("the level must be debug, info, warning or error", param_hint="--log-level")
    given = {
        ("listen",): listen,
        ("tls_listen",): tls_listen,
        ("http",): http,
        ("admin",): admin,
        ("stun", "alternates"): stun_alternate,
        ("log_level",): log_level.lower() if log_level else None,
        ("tls", "certificate"): str(tls_cert) if tls_cert else None,
        ("tls", "key"): str(tls_key) if tls_key else None,
        ("turn", "realm"): realm,
        ("turn", "shared_secrets"): shared_secret or _secret_of_environment(),
        ("turn", "shared_secrets_file"): str(shared_secret_file) if shared_secret_file else None,
        ("turn", "relay_ips"): relay_ip,
        ("turn", "external_ips"): external_ip,
        ("turn", "ports"): ports,
        ("turn", "workers"): workers,
        ("turn", "drain"): drain,
        ("turn", "peers", "allow"): allow_peer,
        ("signaling", "room_tokens"): room_token,
        ("signaling", "room_tokens_file"): str(room_token_file) if room_token_file else None,
        ("signaling", "open_turn"): open_turn or None,
        ("signaling", "origins"): origin,
        ("signaling", "trusted_proxies"): trust_proxy,
        ("signaling", "limits", "room_members"): room_members,
    }
    flags: dict[tuple[str, ...], Any] = {keys: value for keys, value in given.items() if value not in (None, [])}
    if user:
        flags["turn", "users"] = [_user(each) for each in user]
    with common.errors():
        if hash_user is not None:
            _print_hash(hash_user, settings.load(config, flags).turn.realm)
            return
        if print_config:
            print(settings.show(settings.load(config, flags)), end="")
            return
        if check_config:
            _check(config, flags)
            return
        with common.tracing("server", trace, None) as (tracer, _):
            common.run(_serve(config, flags, tracer), loop_factory=_fastest_loop())


def _secret_of_environment() -> list[str]:
    secret = os.environ.get(SECRET_VARIABLE)
    return [secret] if secret else []


def _user(text: str) -> dict[str, str]:
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise typer.BadParameter("write NAME:PASSWORD", param_hint="--user")
    return {"name": name, "password": password}


def _print_hash(name: str, realm: str) -> None:
    from polynya.serve.users import hash_line  # noqa: PLC0415

    if sys.stdin.isatty():
        password = typer.prompt(f"password of {name} for realm {realm}", hide_input=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise ConfigurationError("no password: enter it, or pass it on standard input")
    print(hash_line(name, realm, password))


def _check(path: Path | None, flags: Flags) -> None:
    from polynya.serve.certificates import Certificates, fault_of  # noqa: PLC0415
    from polynya.serve.relaying import check_relays  # noqa: PLC0415
    from polynya.serve.server import check_listeners  # noqa: PLC0415
    from polynya.serve.settings import load, server_config  # noqa: PLC0415

    made = server_config(load(path, flags))
    check_listeners(made)
    if made.turn is not None:
        check_relays(made.turn.config)
    if made.tls is not None:
        Certificates(made.tls)
        if fault := fault_of(made.tls):
            common.say(f"warning: {fault}")
    common.say("the settings are valid")


async def _serve(path: Path | None, flags: Flags, trace: Tracer) -> int:
    from polynya.serve import Server  # noqa: PLC0415
    from polynya.serve.descriptors import log_limit, raise_limit  # noqa: PLC0415
    from polynya.serve.log import configure  # noqa: PLC0415
    from polynya.serve.settings import load, server_config  # noqa: PLC0415

    settings = load(path, flags)
    configure(level=logging.getLevelNamesMapping()[settings.log_level.upper()])
    files = raise_limit()
    stop, hurry, patient = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    early: list[int] = []

    def end() -> None:
        (hurry if stop.is_set() else stop).set()

    def drain() -> None:
        if not stop.is_set():
            patient.set()
            stop.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, end)
    for each in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        loop.add_signal_handler(each, early.append, each)
    async with Server(server_config(settings), trace=trace) as server:
        handlers: dict[int, Callable[[], None]] = {
            signal.SIGHUP: lambda: _reload(server, path, flags),
            signal.SIGUSR1: drain,
            signal.SIGUSR2: lambda: _reload_certificate(server),
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        gc.freeze()  # all objects so far live until the end: do not scan them in each collection
        gc.set_threshold(GARBAGE)
        print(server.ready_line, flush=True)
        _notify("READY=1")
        log_limit(files)
        if server.relaying is None:
            logging.getLogger("polynya.serve").info(
                "TURN is off, since it has no users: set --shared-secret-file, %s, --user, or users in the file",
                SECRET_VARIABLE,
            )
        for number in dict.fromkeys(early):
            handlers[number]()
        await server.run_until(stop)
        _notify("STOPPING=1")
        await server.drain(hurry, unlimited=patient.is_set())
    return 0


def _notify(state: str) -> None:
    """Report a state to systemd, for units with `Type=notify` (sd_notify(3)); elsewhere this does nothing."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] in ("/", "@"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.sendto(state.encode(), path.replace("@", "\0", 1) if path[0] == "@" else path)


def _reload(server: Any, path: Path | None, flags: Flags) -> None:
    """Read everything again. On an error, log it and keep the old settings."""
    from polynya.serve.log import configure  # noqa: PLC0415
    from polynya.serve.settings import load, server_config  # noqa: PLC0415

    log = logging.getLogger("polynya.serve")
    try:
        settings = load(path, flags)
        fixed = server.reload(server_config(settings))
    except ConfigurationError as error:
        log.error("not reloaded, the old settings stay: %s", error)  # noqa: TRY400 - an error of the user
        return
    configure(level=logging.getLevelNamesMapping()[settings.log_level.upper()])
    log.info("reloaded")
    for name in fixed:
        log.warning("%s has changed: restart the server to apply it", name)


def _reload_certificate(server: Any) -> None:
    log = logging.getLogger("polynya.serve")
    try:
        server.reload_certificate()
    except PolynyaError as error:
        log.error("the certificate is not read again: %s", error)  # noqa: TRY400 - an error of the user
        return
    log.info("the certificate was read again")


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    return uvloop.new_event_loop
