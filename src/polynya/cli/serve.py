"""`polynya serve`: STUN, TURN and signaling for others."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from polynya.core.errors import ConfigurationError

from . import common
from .common import TraceOption

if TYPE_CHECKING:
    from polynya.core.trace import Tracer
    from polynya.serve.settings import Flags

Some = list[str] | None

GARBAGE: Final = 20_000
"""New objects between two searches for cycles: what a server makes for a request, and keeps a while, holds none."""


def serve(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Read settings from this TOML file.")
    ] = None,
    listen: Annotated[
        Some,
        typer.Option(metavar="ADDR:PORT", help="STUN over UDP, TURN over UDP and TCP; may be repeated; port 0 is any."),
    ] = None,
    tls_listen: Annotated[Some, typer.Option(metavar="ADDR:PORT", help="TURN over TLS; may be repeated.")] = None,
    http: Annotated[
        Some, typer.Option(metavar="ADDR:PORT", help="Signaling, /healthz and /metrics here; may be repeated.")
    ] = None,
    stun_alternate: Annotated[
        Some,
        typer.Option(
            metavar="ADDR:PORT", help="Another address and port: serve NAT behavior discovery; one for each family."
        ),
    ] = None,
    user: Annotated[Some, typer.Option(metavar="NAME:PASSWORD", help="Who may use TURN; may be repeated.")] = None,
    shared_secret: Annotated[
        Some, typer.Option(metavar="SECRET", help="Makes time-limited TURN credentials; may be repeated.")
    ] = None,
    realm: Annotated[str | None, typer.Option(metavar="NAME", help="The realm of TURN's users.")] = None,
    relay_ip: Annotated[
        Some, typer.Option(metavar="ADDR", help="Relay on this address of this host; may be repeated.")
    ] = None,
    external_ip: Annotated[
        Some,
        typer.Option(metavar="ADDR[/RELAY]", help="What the relay address is called outside a NAT; may be repeated."),
    ] = None,
    ports: Annotated[str | None, typer.Option(metavar="LOW-HIGH", help="The relay ports.")] = None,
    allow_peer: Annotated[
        Some,
        typer.Option(metavar="CIDR", help="Let clients reach these addresses though not public; may be repeated."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate with its chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key, PEM.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Processes that relay; 0, the default: the server's own does."),
    ] = None,
    drain: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="For which allocations may go on after SIGTERM."),
    ] = None,
    origin: Annotated[
        Some, typer.Option(metavar="URL", help="A site whose web pages may use the signaling; may be repeated.")
    ] = None,
    trust_proxy: Annotated[
        Some, typer.Option(metavar="ADDR", help="A proxy whose X-Forwarded-For is believed; may be repeated.")
    ] = None,
    room_members: Annotated[int | None, typer.Option(min=2, max=256, help="The most members of a room.")] = None,
    log_level: Annotated[str | None, typer.Option(metavar="debug|info|warning|error")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings that would be used, secrets masked, and exit.")
    ] = False,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Say whether the settings can be used, and exit: 0 yes, 2 no.")
    ] = False,
    hash_user: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Print the line of a users file for a user; asks for the password; exit."),
    ] = None,
    trace: TraceOption = None,
) -> None:
    """Run a server: STUN, TURN, and signaling over HTTP and WebSocket.

    TURN is on when somebody can use it: give users or a shared secret. Flags override the file. Without any address it
    listens on all: STUN and TURN on port 3478, HTTP on port 8080. One line on standard output, `ready stun=...
    turn=... http=...`, says that every listener accepts; the log goes to standard error. SIGHUP reads file and
    certificates again without ending sessions; SIGTERM and SIGINT end it, a second one at once.
    """
    try:
        from polynya.serve import settings  # noqa: PLC0415
    except ModuleNotFoundError as error:
        common.need("serve", error)
    if log_level is not None and log_level.lower() not in ("debug", "info", "warning", "error"):
        raise typer.BadParameter("a level is debug, info, warning or error", param_hint="--log-level")
    given = {
        ("listen",): listen,
        ("tls_listen",): tls_listen,
        ("http",): http,
        ("stun", "alternates"): stun_alternate,
        ("log_level",): log_level.lower() if log_level else None,
        ("tls", "certificate"): str(tls_cert) if tls_cert else None,
        ("tls", "key"): str(tls_key) if tls_key else None,
        ("turn", "realm"): realm,
        ("turn", "shared_secrets"): shared_secret,
        ("turn", "relay_ips"): relay_ip,
        ("turn", "external_ips"): external_ip,
        ("turn", "ports"): ports,
        ("turn", "workers"): workers,
        ("turn", "drain"): drain,
        ("turn", "peers", "allow"): allow_peer,
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
        raise ConfigurationError("a user needs a password: it is read from standard input")
    print(hash_line(name, realm, password))


def _check(path: Path | None, flags: Flags) -> None:
    from polynya.serve.certificates import Certificates  # noqa: PLC0415
    from polynya.serve.settings import load, server_config  # noqa: PLC0415

    made = server_config(load(path, flags))
    if made.tls is not None:
        Certificates(made.tls)
    common.say("the settings can be used")


async def _serve(path: Path | None, flags: Flags, trace: Tracer) -> int:
    from polynya.serve import Server  # noqa: PLC0415
    from polynya.serve.descriptors import raise_limit, tell  # noqa: PLC0415
    from polynya.serve.log import configure  # noqa: PLC0415
    from polynya.serve.settings import load, server_config  # noqa: PLC0415

    settings = load(path, flags)
    configure(level=logging.getLevelNamesMapping()[settings.log_level.upper()])
    files = raise_limit()
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    async with Server(server_config(settings), trace=trace) as server:
        loop.add_signal_handler(signal.SIGHUP, lambda: _reload(server, path, flags))
        gc.freeze()  # what is there by now stays to the end, and need not be looked at again and again
        gc.set_threshold(GARBAGE)
        print(server.ready_line, flush=True)
        tell(files)
        await server.run_until(stop)
        await server.drain(hurry)
    return 0


def _reload(server: Any, path: Path | None, flags: Flags) -> None:
    """Read everything again. What cannot be used is told, and the server goes on as it was."""
    from polynya.serve.log import configure  # noqa: PLC0415
    from polynya.serve.settings import load, server_config  # noqa: PLC0415

    log = logging.getLogger("polynya.serve")
    try:
        settings = load(path, flags)
        fixed = server.reload(server_config(settings))
    except ConfigurationError as error:
        log.error("not reloaded, everything stays as it was: %s", error)  # noqa: TRY400 - it is the user's, not ours
        return
    configure(level=logging.getLevelNamesMapping()[settings.log_level.upper()])
    log.info("reloaded")
    for name in fixed:
        log.warning("%s has changed: that needs a restart", name)


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    return uvloop.new_event_loop
