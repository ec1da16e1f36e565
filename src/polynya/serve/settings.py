"""Settings: reads a TOML file, applies the flags that override it, and makes the configuration of a server.

    file --read--> tables --flags override--> Settings (checked: all keys known, all values of the right type)
    Settings --server_config--> ServeConfig (checked: all values valid, all files readable)

Every error is a ConfigurationError that names the key. Secrets are never printed.
"""

from __future__ import annotations

import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from polynya.core.addresses import Address, scope
from polynya.core.errors import ConfigurationError, DecodeError
from polynya.core.instants import nanoseconds
from polynya.signaling import limits as signaling
from polynya.stun.registry import PasswordAlgorithmNumber
from polynya.turn.server import config as turn
from polynya.turn.server.alternates import Alternate
from polynya.turn.server.config import ChannelRange, RelayHost, ServerConfig
from polynya.turn.server.policy import PeerPolicy
from polynya.turn.server.users import User

from . import schema
from .config import ServeConfig, TlsFiles, TurnOptions
from .schema import SECRETS, Settings
from .users import UserDatabase, read_users, stored_user

DEFAULT_LISTEN: Final = ("0.0.0.0:3478", "[::]:3478")
DEFAULT_HTTP: Final = ("0.0.0.0:8080",)
MASK: Final = "***"
_ALGORITHMS: Final = {"sha256": PasswordAlgorithmNumber.SHA256, "md5": PasswordAlgorithmNumber.MD5}
_ELSEWHERE: Final = {4: "192.0.2.1", 6: "2001:db8::1"}
"""Destinations for a route look-up, which sends no packet."""

Flags = Mapping[tuple[str, ...], Any]
"""Values from the command line, by the path of their key."""


# -------------------------------------------------------------------------------------------------------------- reading


def load(path: Path | None = None, flags: Flags | None = None) -> Settings:
    """Return the settings of a file and of flags that override it; the defaults without either."""
    tables: dict[str, Any] = {}
    if path is not None:
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} is not TOML: {error}") from None
    for keys, value in (flags or {}).items():
        table = tables
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise ConfigurationError(f"{path}: {key} must be a table: write [{key}]")
        table[keys[-1]] = value
    try:
        settings = msgspec.convert(tables, Settings)
    except msgspec.ValidationError as error:
        where = f"{path}: " if path is not None else ""
        raise ConfigurationError(f"{where}{_explain(str(error))}") from None
    if not settings.listen and not settings.tls_listen and not settings.http:
        listen = tuple(each for each in DEFAULT_LISTEN if socket.has_ipv6 or "[" not in each)
        settings = msgspec.structs.replace(settings, listen=listen, http=DEFAULT_HTTP)
    return settings


def _explain(error: str) -> str:
    """Return an error of msgspec in terms of the file, with dotted keys."""
    fault, _, path = error.partition(" - at `$")
    path = re.sub(r"\[\.\.\.\]", "", path.rstrip("`")).strip(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", fault, re.DOTALL)
    if unknown:
        return f"unknown key {'.'.join(filter(None, (path, unknown[1])))!r}"
    missing = re.fullmatch(r"Object missing required field `(.*)`", fault)
    if missing:
        return f"{path} needs the key {missing[1]}"
    if fault.startswith("Invalid enum value "):
        return f"{path}: {fault.removeprefix('Invalid enum value ')} is not one of the allowed values"
    return f"{path}: {fault[:1].lower()}{fault[1:].replace('`', '')}"


# --------------------------------------------------------------------------------------------------------------- making


def server_config(settings: Settings) -> ServeConfig:
    """Make the configuration of a server. Reads the files of users and looks up the addresses of this host."""
    return ServeConfig(
        listen=_addresses("listen", settings.listen),
        tls_listen=_addresses("tls_listen", settings.tls_listen),
        http=_addresses("http", settings.http),
        admin=_addresses("admin", settings.admin),
        alternates=_addresses("stun.alternates", settings.stun.alternates),
        external_ips=_external_ips(settings.stun.external_ips),
        turn=_turn(settings),
        tls=_tls(settings.tls),
        limits=signaling.Limits(**msgspec.structs.asdict(settings.signaling.limits)),
        room_tokens=_room_tokens(settings.signaling),
        open_turn=settings.signaling.open_turn,
        origins=settings.signaling.origins,
        trusted_proxies=settings.signaling.trusted_proxies,
        metrics_token=settings.metrics.token,
    )


def _tls(tls: schema.Tls) -> TlsFiles | None:
    if not tls.certificate and not tls.key:
        return None
    if not tls.certificate or not tls.key:
        raise ConfigurationError("tls needs both certificate and key")
    return TlsFiles(certificate=Path(tls.certificate), key=Path(tls.key), server_name=tls.server_name)


def _room_tokens(given: schema.Signaling) -> tuple[str, ...]:
    stored = read_secrets(Path(given.room_tokens_file), "room token") if given.room_tokens_file else ()
    return tuple(dict.fromkeys((*given.room_tokens, *stored)))


def _external_ips(texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        outside, slash, inside = text.partition("/")
        if not slash or not outside or not inside or inside in found:
            raise ConfigurationError(f"stun.external_ips: write EXTERNAL/ADDR once for each address, not {text!r}")
        found[inside] = outside
    return found


def _turn(settings: Settings) -> TurnOptions | None:
    given = settings.turn
    secrets = shared_secrets(given)
    if not (given.users or given.users_file or given.users_database or secrets):
        if given != schema.Turn():
            raise ConfigurationError(
                "turn has settings but no users: add a user or a shared secret (--shared-secret-file)"
            )
        return None
    realm = given.realm
    users = [_user(each, realm) for each in given.users]
    if given.users_file:
        users += read_users(Path(given.users_file), realm)
    return TurnOptions(
        config=ServerConfig(
            realm=realm,
            relays=_relays(settings),
            ports=_ports(given.ports),
            port_rest=nanoseconds(given.port_rest),
            policy=PeerPolicy(allow=given.peers.allow, deny=given.peers.deny),
            limits=_turn_limits(given.limits),
            channel_range=ChannelRange(given.channel_range),
            default_lifetime=nanoseconds(given.default_lifetime),
            max_lifetime=nanoseconds(given.max_lifetime),
            nonce_lifetime=nanoseconds(given.nonce_lifetime),
            algorithms=tuple(dict.fromkeys(_ALGORITHMS[name] for name in given.algorithms)),
            refuse_expired_refresh=given.refuse_expired_refresh,
        ),
        users=tuple(users),
        shared_secrets=secrets,
        look_up=UserDatabase(Path(given.users_database), realm) if given.users_database else None,
        workers=given.workers,
        gather=given.gather,
        credential_lifetime=given.credential_lifetime,
        drain=given.drain,
        alternates=_alternates(given.alternates),
    )


def shared_secrets(given: schema.Turn) -> tuple[str, ...]:
    """Return the shared secrets of the settings and of their file."""
    return (
        *given.shared_secrets,
        *(read_secrets(Path(given.shared_secrets_file)) if given.shared_secrets_file else ()),
    )


def read_secrets(path: Path, kind: str = "shared secret") -> tuple[str, ...]:
    """Return the secrets of a kind in a file, one on each line. Raises ConfigurationError if there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(f"cannot read the {kind}s of {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not a file of {kind}s: its text is not UTF-8") from None
    secrets = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not secrets:
        raise ConfigurationError(f"{path} has no {kind}: write one on a line")
    return secrets


def _user(user: schema.User, realm: str) -> User:
    if bool(user.password) == bool(user.keys):
        raise ConfigurationError(f"turn.users: {user.name!r} needs either a password or keys")
    try:
        if user.keys:
            return stored_user(user.name, list(user.keys), user.max_allocations)
        return User.with_password(user.name, realm, user.password, max_allocations=user.max_allocations)
    except ValueError as error:  # ConfigurationError is a subclass
        raise ConfigurationError(f"turn.users: {error}") from None


def _turn_limits(limits: schema.TurnLimits) -> turn.Limits:
    values = msgspec.structs.asdict(limits)
    return turn.Limits(
        **{name: nanoseconds(value) if name.endswith("_patience") else value for name, value in values.items()}
    )


def _addresses(key: str, texts: tuple[str, ...]) -> tuple[Address, ...]:
    try:
        return tuple(Address.parse(text.replace("localhost:", "127.0.0.1:", 1)) for text in texts)
    except DecodeError as error:
        raise ConfigurationError(f"{key}: {error}") from None


def _alternates(texts: tuple[str, ...]) -> tuple[Alternate, ...]:
    try:
        return tuple(Alternate.parse(text) for text in texts)
    except ConfigurationError as error:
        raise ConfigurationError(f"turn.alternates: {error}") from None


def _ports(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", text)
    if match is None:
        raise ConfigurationError(f"turn.ports: write LOW-HIGH, not {text!r}")
    return int(match[1]), int(match[2])


def _relays(settings: Settings) -> tuple[RelayHost, ...]:
    """Return the addresses to relay on, each with its external address."""
    hosts = settings.turn.relay_ips or tuple(dict.fromkeys(_usual_relays(settings)))
    if not hosts:
        raise ConfigurationError("turn.relay_ips: no address to relay on was found on this host; set one")
    external: dict[str, str] = {}
    for text in settings.turn.external_ips:
        outside, slash, inside = text.partition("/")
        fitting = [host for host in hosts if (":" in host) == (":" in outside)]
        if not slash and len(fitting) == 1:
            inside = fitting[0]
        if inside not in hosts:
            raise ConfigurationError(
                f"turn.external_ips: write EXTERNAL/RELAY with an address of relay_ips, not {text!r}"
            )
        if inside in external:
            raise ConfigurationError(f"turn.external_ips: {inside} has two external addresses")
        external[inside] = outside
    return tuple(RelayHost(host=host, external=external.get(host, "")) for host in hosts)


def _usual_relays(settings: Settings) -> Iterator[str]:
    for address in (
        *_addresses("listen", settings.listen),
        *_addresses("tls_listen", settings.tls_listen),
    ):
        if scope(address.host) != "unspecified":
            yield address.host
        elif (found := _routed(address.family)) is not None:
            yield found


def _routed(family: int) -> str | None:
    """Return the address of this host that the default route uses."""
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect((_ELSEWHERE[family], 9))
            host = str(probe.getsockname()[0])
    except OSError:
        return None
    return None if scope(host) in {"loopback", "link-local"} else host


# ------------------------------------------------------------------------------------------------------------- printing


def show(settings: Settings) -> str:
    """Return the settings as a TOML file with the description of each key, and with secrets mgiven."""
    return "\n".join(_table(settings, "")).strip() + "\n"


def _table(table: msgspec.Struct, path: str) -> Iterator[str]:
    below = []
    for key, about, value in keys_of(table):
        if not about:
            below.append((key, value))  # one or more tables
            continue
        yield f"# {about}"
        if value is None:
            yield f"# {key} ="
        elif value and key in SECRETS:
            yield f"{key} = {_toml([MASK] * len(value) if isinstance(value, tuple) else MASK)}"
        else:
            yield f"{key} = {_toml(value)}"
    for key, value in below:
        whole = f"{path}{key}"
        for each in value if isinstance(value, tuple) else (value,):
            yield ""
            yield f"# {' '.join((type(each).__doc__ or '').split())}"
            yield f"[[{whole}]]" if isinstance(value, tuple) else f"[{whole}]"
            yield from _table(each, f"{whole}.")


def keys_of(table: msgspec.Struct) -> Iterator[tuple[str, str, Any]]:
    """Yield each key of a table with its description and value."""
    for key, about in described(type(table)):
        yield key, about, getattr(table, key)


def described(kind: type[msgspec.Struct]) -> Iterator[tuple[str, str]]:
    """Yield each key of a type of table with its description, which is empty if the key is a table itself."""
    for field in msgspec.inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        schema_ = field.type.extra_json_schema or {} if isinstance(field.type, msgspec.inspect.Metadata) else {}
        yield field.name, schema_.get("description", "")


def defaults(kind: type[msgspec.Struct]) -> Iterator[tuple[str, str, str]]:
    """Yield each key that is not a table, its description, and its default in TOML; empty if the key is required."""
    for field, (key, about) in zip(msgspec.structs.fields(kind), described(kind), strict=True):
        if about:
            given = field.default is not msgspec.NODEFAULT and field.default is not None
            yield key, about, _toml(field.default) if given else ""


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(int(value)) if float(value).is_integer() else repr(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    return _quoted(str(value))


def _quoted(text: str) -> str:
    """Return a basic string of TOML."""
    escaped = (f"\\{each}" if each in '"\\' else each if each.isprintable() else f"\\U{ord(each):08x}" for each in text)
    return f'"{"".join(escaped)}"'
