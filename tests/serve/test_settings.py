"""Settings: keys of the file, flags, errors, and secrets that are never printed."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.serve import schema
from polynya.serve.settings import MASK, described, load, server_config, show
from polynya.signaling.limits import Limits as SignalingLimits
from polynya.stun.registry import PasswordAlgorithmNumber
from polynya.turn.server.alternates import Alternate
from polynya.turn.server.config import ChannelRange, Limits, RelayHost, ServerConfig
from scripts import docs_hooks
from tests.interop.coturn import make_certificate

WHOLE = """
listen = ["127.0.0.1:3478", "[::1]:3478"]
tls_listen = ["127.0.0.1:5349"]
http = ["127.0.0.1:8080"]
admin = ["127.0.0.1:9090"]
log_level = "warning"

[tls]
certificate = "cert.pem"
key = "key.pem"
server_name = "turn.example.org"

[stun]
alternates = ["127.0.0.2:3479"]
external_ips = ["203.0.113.5/127.0.0.1", "203.0.113.6/127.0.0.2"]

[turn]
realm = "example.org"
shared_secrets = ["new one", "old one"]
credential_lifetime = 3600
refuse_expired_refresh = true
relay_ips = ["127.0.0.1", "::1"]
external_ips = ["203.0.113.5", "2001:db8::5/::1"]
ports = "50000-50999"
port_rest = 1.5
channel_range = "rfc8656"
algorithms = ["md5"]
default_lifetime = 300
max_lifetime = 1800
nonce_lifetime = 60
workers = 2
gather = 0.0002
drain = 30
alternates = ["192.0.2.9:3478", "tls:192.0.2.9:5349"]

[turn.peers]
allow = ["10.1.0.0/16"]
deny = ["198.51.100.7"]

[turn.limits]
allocations_per_user = 3
stream_patience = 2.5

[[turn.users]]
name = "alice"
password = "open sesame"
max_allocations = 1

[[turn.users]]
name = "bob"
keys = ["00112233445566778899aabbccddeeff"]

[signaling]
room_tokens = ["kitchen key"]
open_turn = false
origins = ["https://example.org"]
trusted_proxies = ["127.0.0.1"]

[signaling.limits]
room_members = 4

[metrics]
token = "for prometheus"
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "polynya.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# -------------------------------------------------------------------------------------------------------- what it means


def test_every_key_reaches_the_server(write: Any) -> None:
    made = server_config(load(write(WHOLE)))
    assert made.listen == (Address("127.0.0.1", 3478), Address("::1", 3478))
    assert made.tls_listen == (Address("127.0.0.1", 5349),) and made.http == (Address("127.0.0.1", 8080),)
    assert made.tls is not None and made.tls.server_name == "turn.example.org"
    assert made.admin == (Address("127.0.0.1", 9090),)
    assert made.metrics_token == "for prometheus"
    assert made.limits == SignalingLimits(room_members=4)
    assert made.origins == ("https://example.org",) and made.trusted_proxies == ("127.0.0.1",)
    assert made.room_tokens == ("kitchen key",) and not made.open_turn
    assert made.alternates == (Address("127.0.0.2", 3479),)
    assert made.external_ips == {"127.0.0.1": "203.0.113.5", "127.0.0.2": "203.0.113.6"}
    turn = made.turn
    assert turn is not None
    assert turn.config == ServerConfig(
        realm="example.org",
        relays=(RelayHost(host="127.0.0.1", external="203.0.113.5"), RelayHost(host="::1", external="2001:db8::5")),
        ports=(50000, 50999),
        port_rest=1_500_000_000,
        policy=turn.config.policy,
        limits=Limits(allocations_per_user=3, stream_patience=2_500_000_000),
        channel_range=ChannelRange.RFC8656,
        default_lifetime=300 * 10**9,
        max_lifetime=1800 * 10**9,
        nonce_lifetime=60 * 10**9,
        algorithms=(PasswordAlgorithmNumber.MD5,),
        refuse_expired_refresh=True,
    )
    assert (turn.config.policy.allow, turn.config.policy.deny) == (("10.1.0.0/16",), ("198.51.100.7",))
    assert [(user.name, user.max_allocations, sorted(user.keys)) for user in turn.users] == [
        ("alice", 1, [1, 2]),
        ("bob", None, [1]),
    ]
    assert turn.shared_secrets == ("new one", "old one") and turn.credential_lifetime == 3600
    assert (turn.workers, turn.gather, turn.drain) == (2, 0.0002, 30)
    assert turn.alternates == (Alternate(Address("192.0.2.9", 3478)), Alternate.parse("tls:192.0.2.9:5349"))


def test_room_tokens_come_from_the_file_of_tokens_too(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    keys = ("signaling", "room_tokens"), ("signaling", "room_tokens_file")
    flags = dict(zip(keys, (["one"], str(tokens)), strict=True))
    with pytest.raises(ConfigurationError, match="cannot read the room tokens"):
        server_config(load(None, flags))
    tokens.write_text("\n \n")
    with pytest.raises(ConfigurationError, match="has no room token"):
        server_config(load(None, flags))
    tokens.write_text("two\n\n  three \none\n")
    assert server_config(load(None, flags)).room_tokens == ("one", "two", "three")
    assert "swordfish" not in show(load(None, {keys[0]: ["swordfish"]}))
    for wrong in ("", "x" * 513):
        with pytest.raises(ConfigurationError, match="1 to 512 characters"):
            server_config(load(None, {keys[0]: [wrong]}))
    with pytest.raises(ConfigurationError, match="open_turn"):
        server_config(load(None, {keys[0]: ["one"], ("signaling", "open_turn"): True}))


def test_the_example_above_sets_every_key(write: Any) -> None:
    """The test above then detects keys that are never read."""
    given_ = tomllib.loads(WHOLE)
    left = {"turn.users_file", "turn.shared_secrets_file", "turn.users_database", "signaling.room_tokens_file"}
    for path, key, _ in every_key():
        table: Any = given_
        for part in path:
            table = table.get(part, {})
            table = table[0] | table[-1] if isinstance(table, list) else table
        name = ".".join((*path, key))
        assert key in table or path[-1:] == ("limits",) or name in left, name


def test_defaults_of_the_file_are_those_of_the_parts() -> None:
    made = server_config(load(None, {("turn", "shared_secrets"): ["x"], ("turn", "relay_ips"): ["127.0.0.1"]}))
    assert made.turn is not None
    assert made.turn.config == ServerConfig(
        realm="polynya", relays=(RelayHost(host="127.0.0.1"),), policy=made.turn.config.policy
    )
    assert made.turn.config.limits == Limits() and made.limits == SignalingLimits()


def test_without_settings_there_is_stun_and_signaling_on_all_addresses() -> None:
    made = server_config(load())
    assert made.turn is None and made.tls is None and made.tls_listen == ()
    assert {each.port for each in made.listen} == {3478} and [each.port for each in made.http] == [8080]
    assert load(None, {("http",): ["127.0.0.1:0"]}).listen == ()


def test_flags_override_the_file_key_by_key(write: Any) -> None:
    flags = {
        ("turn", "realm"): "other",
        ("turn", "users"): [{"name": "carol", "password": "x"}],
        ("listen",): ["[::1]:1"],
    }
    settings = load(write(WHOLE), flags)
    assert settings.turn.realm == "other" and [user.name for user in settings.turn.users] == ["carol"]
    assert settings.listen == ("[::1]:1",)
    assert settings.turn.ports == "50000-50999" and settings.tls_listen == ("127.0.0.1:5349",)


@pytest.mark.parametrize(
    ("listen", "relays"),
    [(["127.0.0.1:1", "127.0.0.1:2"], ["127.0.0.1"]), (["127.0.0.1:1", "[::1]:1"], ["127.0.0.1", "::1"])],
)
def test_the_addresses_of_listen_are_the_relay_addresses(listen: list[str], relays: list[str]) -> None:
    made = server_config(load(None, {("turn", "shared_secrets"): ["x"], ("listen",): listen}))
    assert made.turn is not None and [each.host for each in made.turn.config.relays] == relays


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lisen = []", "unknown key 'lisen'"),
        ("[turn]\nrelm = 'x'", "unknown key 'turn.relm'"),
        ("[turn.limits]\nalocations = 1", "unknown key 'turn.limits.alocations'"),
        ("[[turn.users]]\nname = 'a'\npasword = 'x'", "unknown key 'turn.users[0].pasword'"),
        ("[tunr]", "unknown key 'tunr'"),
        ("listen = '127.0.0.1:1'", "listen: expected array, got str"),
        ("listen = [1]", "listen[0]: expected str, got int"),
        ("listen = ['nonsense']", "listen: "),
        ("listen = ['example.org:1']", "listen: "),
        ("http = ['127.0.0.1:99999']", "http: "),
        ("log_level = 'loud'", "log_level: 'loud' is not one of the allowed values"),
        ("turn = 3", "turn: expected object, got int"),
        ("[turn]\nports = '1-2-3'\nshared_secrets = ['x']", "turn.ports: write LOW-HIGH"),
        ("[turn]\nports = '2-1'\nshared_secrets = ['x']", "relay ports 2-1"),
        ("[turn]\nshared_secrets = ['']", "shared secret must not be empty"),
        ("[turn]\nrealm = 'x'", "turn has settings but no users"),
        ("[turn]\nshared_secrets_file = '/nowhere/secret'", "cannot read the shared secrets of /nowhere/secret"),
        ("[turn]\nshared_secrets_file = '/dev/null'", "/dev/null has no shared secret"),
        ("[turn]\nshared_secrets = ['x']\nrelay_ips = ['0.0.0.0']", "no relay address"),
        ("[turn]\nshared_secrets = ['x']\nrelay_ips = ['nonsense']", "a relay address is an IP address"),
        ("[turn]\nshared_secrets = ['x']\nexternal_ips = ['1.2.3.4/5.6.7.8']", "turn.external_ips"),
        ("[turn]\nshared_secrets = ['x']\nchannel_range = 'all'", "turn.channel_range: 'all' is not one"),
        ("[turn]\nshared_secrets = ['x']\nalgorithms = []", "password algorithms"),
        ("[turn]\nshared_secrets = ['x']\ndrain = -1", "turn.drain: expected float >= 0"),
        ("[turn]\nshared_secrets = ['x']\nworkers = 9999", "workers must be 0 to 256"),
        ("[turn]\nshared_secrets = ['x']\nmax_lifetime = 1", "lifetimes"),
        ("[turn]\nshared_secrets = ['x']\n[turn.peers]\nallow = ['10.0.0.0/99']", "is no peer rule"),
        ("[turn]\nshared_secrets = ['x']\n[turn.limits]\nchannels = -1", "turn.limits.channels: expected int >= 0"),
        ("[[turn.users]]\nname = 'a'", "needs either a password or keys"),
        ("[[turn.users]]\npassword = 'a'", "turn.users[0] needs the key name"),
        ("[[turn.users]]\nname = 'a'\nkeys = ['zz']", "hexadecimal digits"),
        ("[[turn.users]]\nname = 'a'\nkeys = ['" + "z" * 32 + "']", "turn.users: "),
        ("users = [1]", "unknown key 'users'"),
        ("[turn]\nusers_file = '/nowhere/users'", "cannot read the users of /nowhere/users"),
        ("[turn]\nusers_database = '/nowhere/users'", "cannot read the users of /nowhere/users"),
        ("[tls]\ncertificate = 'x'", "tls needs both"),
        ("tls_listen = ['127.0.0.1:0']", "tls_listen needs TURN"),
        ("tls_listen = ['127.0.0.1:0']\n[turn]\nshared_secrets = ['x']", "tls_listen needs a certificate"),
        ("[signaling.limits]\nroom_members = 0", "room_members must be at least"),
        ("[", "is not TOML"),
        ("a = 1\na = 2", "is not TOML"),
    ],
)
def test_an_error_names_the_key(write: Any, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        server_config(load(write(text)))
    assert says in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read .*missing\.toml: No such file"):
        load(tmp_path / "missing.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="is not TOML"):
        load(tmp_path / "binary")
    (tmp_path / "x.toml").write_text("turn = 1")
    with pytest.raises(ConfigurationError, match="turn must be a table"):
        load(tmp_path / "x.toml", {("turn", "realm"): "x"})


KEYS = st.sampled_from(
    ["listen", "turn", "tls", "http", "realm", "users", "limits", "peers", "allow", "ports", "x", "name"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_tables_give_settings_or_a_configuration_error(tables: dict[str, Any]) -> None:
    with suppress(ConfigurationError):
        server_config(load(None, {(key,): value for key, value in tables.items()}))


def test_any_change_of_a_byte_gives_settings_or_a_configuration_error(write: Any, rng: random.Random) -> None:
    text = WHOLE.replace("users = 2", "")
    for _ in range(300):
        place = rng.randrange(len(text))
        changed = text[:place] + rng.choice("\"[]=.x0-\n'{}#") + text[place + rng.randrange(3) :]
        with suppress(ConfigurationError):
            server_config(load(write(changed)))


# ------------------------------------------------------------------------------------------------------------- printing


def test_printed_settings_are_a_file_with_the_same_settings_except_secrets(write: Any) -> None:
    settings = load(write(WHOLE))
    printed = show(settings)
    for secret in ("new one", "old one", "open sesame", "00112233", "for prometheus", "kitchen key"):
        assert secret not in printed
    assert printed.count(MASK) == 6
    again = load(write(printed))
    assert masked(again) == masked(settings)
    assert show(again) == printed


def masked(settings: schema.Settings) -> Any:
    """Return the settings as plain data, without secrets."""
    text = msgspec.json.encode(settings).decode()
    data = msgspec.json.decode(text)
    for user in data["turn"]["users"]:
        user.pop("password"), user.pop("keys")
    data["turn"].pop("shared_secrets"), data["metrics"].pop("token"), data["signaling"].pop("room_tokens")
    return data


@given(st.text(max_size=40))
def test_any_text_survives_printing(text: str) -> None:
    try:
        printed = show(load(None, {("turn", "realm"): text}))
    except ConfigurationError:
        return
    assert tomllib.loads(printed)["turn"]["realm"] == text


def every_key() -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield each key with the path of its table and its description."""
    tables = [(tuple(filter(None, name.strip("[]").split("."))), kind) for name, kind in schema.TABLES.items()]
    known = {path for path, _ in tables}
    for path, kind in tables:
        for key, about in described(kind):
            if (*path, key) not in known:
                yield path, key, about


def test_every_key_has_a_description() -> None:
    keys = list(every_key())
    assert len(keys) > 60
    assert [".".join((*path, key)) for path, key, about in keys if not about.endswith(".")] == []


def test_every_key_is_in_the_reference() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"
    text = docs_hooks.on_page_markdown(page.read_text(encoding="utf-8"))
    assert len(list(every_key())) == len(re.findall(r"^\| `[a-z_0-9]+` \|", text, re.MULTILINE))
    for path, key, about in every_key():
        assert re.search(rf"^\| `{key}` \|.*{re.escape(about)} \|$", text, re.MULTILINE), ".".join((*path, key))
    assert '| `ports` | `"49152-65535"` | LOW-HIGH: range of the relay ports. |' in text


def test_shared_secrets_come_from_the_settings_and_from_their_file(tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text("# of 2026\nfrom the file \n\n")
    flags = {("turn", "shared_secrets_file"): str(tmp_path / "secrets"), ("listen",): ["127.0.0.1:0"]}
    made = server_config(load(None, flags))
    assert made.turn is not None and made.turn.shared_secrets == ("from the file",)
    made = server_config(load(None, {**flags, ("turn", "shared_secrets"): ["given"]}))
    assert made.turn is not None and made.turn.shared_secrets == ("given", "from the file")


def test_a_certificate_is_read_when_the_settings_are_checked(tmp_path: Path) -> None:
    from polynya.serve.certificates import Certificates
    from polynya.serve.config import TlsFiles

    make_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    Certificates(TlsFiles(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem"))
    with pytest.raises(ConfigurationError, match=r"missing\.pem.* cannot be used: No such file"):
        Certificates(TlsFiles(certificate=tmp_path / "missing.pem", key=tmp_path / "key.pem"))
