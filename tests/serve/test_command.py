"""`polynya serve` on the command line: files, flags, signals, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import sqlite3
import tomllib
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

import polynya
from polynya.aio.signaling import fetch_servers
from polynya.core.errors import TransactionError
from polynya.serve.descriptors import MOST
from polynya.serve.users import SCHEMA, hash_line
from polynya.turn.server.users import time_limited_password
from tests.cli import conftest as commands
from tests.cli.conftest import Process, start
from tests.cli.conftest import polynya as run
from tests.interop.coturn import make_certificate
from tests.serve.turn_house import echo, trusting, works

pytestmark = pytest.mark.slow

__all__ = ["start"]

Start = Callable[..., Process]
LISTEN = ("--listen", "127.0.0.1:0")
CONFIG = """
listen = ["127.0.0.1:0"]
http = ["127.0.0.1:0"]

[turn]
realm = "example.org"
users_file = "{folder}/users"
workers = {workers}
drain = {drain}

[turn.peers]
allow = ["127.0.0.1"]
"""


def ready(process: Process) -> dict[str, str]:
    parts = process.line().split()
    assert parts[0] == "ready", parts
    return dict(part.split("=", 1) for part in parts[1:])


def configured(folder: Path, *, workers: int = 0, drain: float = 0) -> str:
    (folder / "users").write_text(hash_line("alice", "example.org", "open sesame") + "\n")
    (folder / "polynya.toml").write_text(CONFIG.format(folder=folder, workers=workers, drain=drain))
    return str(folder / "polynya.toml")


def client(address: str, password: str = "open sesame", name: str = "alice") -> polynya.TurnClient:
    return polynya.TurnClient(f"turn:{address}", username=name, password=password)


# ------------------------------------------------------------------------------------------------------ without serving


def test_print_config_prints_the_settings_without_secrets(tmp_path: Path) -> None:
    path = configured(tmp_path)
    flags = "--user bob:builder --shared-secret hidden --ports 50000-50009 --allow-peer 10.0.0.0/8"
    addresses = ("--relay-ip", "127.0.0.1", "--external-ip", "192.0.2.1")
    done = run("serve", "--config", path, *flags.split(), *addresses, "--print-config")
    assert done.returncode == 0 and done.stderr == b""
    assert b"builder" not in done.stdout and b"hidden" not in done.stdout
    turn = tomllib.loads(done.stdout.decode())["turn"]
    assert turn["realm"] == "example.org" and turn["ports"] == "50000-50009"
    assert (turn["relay_ips"], turn["external_ips"]) == (["127.0.0.1"], ["192.0.2.1"])
    assert turn["peers"]["allow"] == ["10.0.0.0/8"], "the flag, not the file"
    assert [user["name"] for user in turn["users"]] == ["bob"]


def test_check_config_answers_by_its_exit_code_and_opens_nothing(tmp_path: Path) -> None:
    path = configured(tmp_path)
    done = run("serve", "--config", path, "--check-config")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"the settings are valid\n")
    for text, says in (
        ("[turn]\nrelm = 1", "unknown key 'turn.relm'"),
        ("[turn]\nusers_file = '/nowhere'", "cannot read the users"),
        ("[tls]\ncertificate = '/nowhere/c'\nkey = '/nowhere/k'", "cannot be used: No such file"),
    ):
        (tmp_path / "wrong.toml").write_text(text)
        done = run("serve", "--config", str(tmp_path / "wrong.toml"), "--check-config")
        assert done.returncode == 2 and done.stdout == b""
        assert done.stderr.startswith(b"polynya: ") and says in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_hash_user_prints_a_line_that_lets_the_user_in(tmp_path: Path) -> None:
    done = run("serve", "--hash-user", "alice", "--realm", "example.org", input=b"open sesame\n")
    assert done.returncode == 0
    assert done.stdout.decode() == hash_line("alice", "example.org", "open sesame") + "\n"
    for name, password in (("alice", b"\n"), ("a:b", b"x\n")):
        done = run("serve", "--hash-user", name, input=password)
        assert done.returncode == 2 and done.stdout == b"" and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--user", "alice"], "NAME:PASSWORD"),
        (["--tls-listen", "127.0.0.1:0", "--user", "a:b"], "tls_listen needs a certificate"),
        (["--realm", "x"], "turn has settings but no users"),
        (["--user", "a:b", "--ports", "5"], "LOW-HIGH"),
        (["--user", "a:b", "--allow-peer", "10.0.0.1/8"], "beyond its prefix"),
        (["--user", "a:b", "--relay-ip", "::"], "no relay address"),
        (["--user", "a:b", "--relay-ip", "203.0.113.7"], "cannot relay on 203.0.113.7"),
        (["--http", "203.0.113.7:80", "--check-config"], "cannot listen on tcp 203.0.113.7:80"),
        (
            ["--admin", "[2001:db8::7]:9", "--check-config"],
            "does not have this address",
        ),
        (["--user", "a:b", "--relay-ip", "2001:db8::7", "--check-config"], "cannot relay on 2001:db8::7"),
        (["--user", "a:b", "--workers", "1", "--trace", os.devnull], "cannot be traced"),
        (["--config", "/nowhere.toml"], "cannot read /nowhere.toml"),
    ],
)
def test_a_configuration_error_is_one_line_and_exit_code_2(flags: list[str], says: str) -> None:
    done = run("serve", *LISTEN, *flags)
    assert done.returncode == 2 and done.stdout == b""
    assert says in " ".join(done.stderr.decode().split()) and b"Traceback" not in done.stderr


# -------------------------------------------------------------------------------------------------------------- serving


async def test_flags_alone_make_a_turn_server(start: Start, tmp_path: Path) -> None:
    make_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    process = start(
        "serve", *LISTEN, "--tls-listen", "127.0.0.1:0", "--tls-cert", str(tmp_path / "cert.pem"), "--tls-key",
        str(tmp_path / "key.pem"), "--user", "alice:open:sesame", "--allow-peer", "127.0.0.1",
    )  # fmt: skip
    where = ready(process)
    assert list(where) == ["stun", "turn", "turns"] and where["stun"] == where["turn"]
    uris = [f"turn:{where['turn']}", f"turn:{where['turn']}?transport=tcp", f"turns:localhost:{where['turns'][10:]}"]

    for uri in uris:
        options = {"username": "alice", "password": "open:sesame", "tls": trusting(tmp_path / "cert.pem")}
        async with echo() as peer, polynya.TurnClient(uri, **options) as relay:
            await relay.permit(peer)
            await works(relay, peer)

    process.signal(signal.SIGTERM)
    assert process.wait() == 0


async def test_every_other_flag_does_what_it_says(start: Start) -> None:
    """--http, --realm, --shared-secret, --relay-ip, --external-ip, --ports, --workers, --allow-peer."""
    process = start(
        "serve", *LISTEN, "--http", "127.0.0.1:0", "--realm", "flags.example", "--shared-secret", "old secret",
        "--shared-secret", "new secret", "--relay-ip", "127.0.0.1", "--external-ip", "192.0.2.77/127.0.0.1",
        "--ports", "21000-21009", "--workers", "1", "--allow-peer", "127.0.0.1",
    )  # fmt: skip
    where = ready(process)
    assert list(where) == ["stun", "turn", "http"]
    realms: list[str] = []

    def credentials(secret: str) -> Callable[[str, str], Coroutine[None, None, tuple[str, str]]]:
        async def ask(_uri: str, realm: str) -> tuple[str, str]:
            realms.append(realm)
            return "99999999999:me", time_limited_password("99999999999:me", secret.encode())

        return ask

    offered = (await fetch_servers(where["http"])).servers
    assert [each.uri for each in offered if each.username] == [
        f"turn:{where['turn']}?transport={transport}" for transport in ("udp", "tcp")
    ]
    for secret in ("old secret", "new secret"):
        uri = f"turn:{where['turn']}"
        async with echo() as peer, polynya.TurnClient(uri, credentials=credentials(secret)) as relay:
            assert relay.relayed[0].host == "192.0.2.77" and 21000 <= relay.relayed[0].port <= 21009
            await relay.permit(peer)
            await works(relay, peer)
            with pytest.raises(TransactionError, match="403"):
                await relay.permit("10.0.0.1:1")

    assert set(realms) == {"flags.example"}
    assert len(children(process.process.pid)) == 1, "one worker"
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_without_users_it_says_that_turn_is_off_and_why(start: Start) -> None:
    process = start("serve", *LISTEN)
    assert "turn" not in ready(process)
    assert "since it has no users: set --shared-secret-file" in process.until("TURN is off")


def test_the_shared_secret_comes_from_the_environment_or_a_file(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("of the file\n")
    monkeypatch.setattr(commands, "environment", lambda **_: {**os.environ, "POLYNYA_SHARED_SECRET": "of the env"})
    process = start("serve", *LISTEN, "--relay-ip", "127.0.0.1", "--shared-secret-file", str(tmp_path / "secret"))
    turn = ready(process)["turn"]

    async def allocate() -> None:
        for secret in (b"of the env", b"of the file"):
            name = "99999999999:me"
            async with client(turn, time_limited_password(name, secret), name) as relay:
                assert relay.relayed

    asyncio.run(allocate())


def test_the_limit_of_open_files_is_raised(start: Start) -> None:
    """A relay port is an open file, and the default limit of shells and systemd is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        process = start("serve", *LISTEN, "--user", "alice:x")
        ready(process)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    now, most = resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE)
    assert now == min(most, MOST) if most != resource.RLIM_INFINITY else now == MOST
    assert f"at most {now} open files" in process.until("open files")


def test_strangers_leave_descriptors_to_relays(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = ["sh", "-c", 'ulimit -n 160 && exec "$0" "$@"', *commands.COMMAND]
    monkeypatch.setattr(commands, "COMMAND", limited)
    process = start("serve", *LISTEN, "--http", "127.0.0.1:0", "--user", "alice:open sesame")
    said = ready(process)
    ports = [int(said[key].rpartition(":")[2]) for key in ("turn", "http")]
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(100) for port in ports]

    async def allocate() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                relay = await stack.enter_async_context(client(said["turn"]))
                assert relay.relayed

    asyncio.run(allocate())
    for each in held:
        each.close()


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("workers", [0, 1])
async def test_sighup_reads_everything_again_and_sessions_continue(start: Start, tmp_path: Path, workers: int) -> None:
    path = configured(tmp_path, workers=workers)
    process = start("serve", "--config", path)
    turn = ready(process)["turn"]

    loop = asyncio.get_running_loop()

    async def reloaded() -> str:
        process.signal(signal.SIGHUP)
        return await loop.run_in_executor(None, process.until, "reloaded")

    async with echo() as peer, client(turn) as relay:
        await relay.permit(peer)
        with (tmp_path / "users").open("a") as users:
            users.write(hash_line("bob", "example.org", "builder") + "\n")
        await reloaded()
        async with client(turn, "builder", "bob"):
            pass
        await works(relay, peer)
        (tmp_path / "users").write_text("nonsense")
        assert "not reloaded, the old settings stay: " in await reloaded()
        async with client(turn, "builder", "bob"):
            pass
        configured(tmp_path, workers=workers)
        text = (tmp_path / "polynya.toml").read_text().replace("example.org", "other.org")
        (tmp_path / "polynya.toml").write_text(text.replace("[turn]", "[turn]\nshared_secrets = ['x']"))
        await reloaded()
        await loop.run_in_executor(None, process.until, "turn.realm has changed: restart the server to apply it")
        with pytest.raises(TransactionError, match="401"):
            await client(turn, "builder", "bob").allocate(5)
        await works(relay, peer)

    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_sigterm_drains_and_a_second_one_ends_it(start: Start, tmp_path: Path) -> None:
    path = configured(tmp_path, drain=60)

    async def session(process: Process, *, leave: bool) -> None:
        loop = asyncio.get_running_loop()
        async with echo() as peer:
            relay = client(ready(process)["turn"])
            await relay.allocate(10)
            await relay.permit(peer)
            process.signal(signal.SIGTERM)
            await loop.run_in_executor(None, process.until, "draining 1 allocations for at most 60 s")
            await works(relay, peer)
            if leave:
                await relay.close()
            else:
                process.signal(signal.SIGTERM)
            assert await loop.run_in_executor(None, process.wait) == 0
            await relay.close()

    for leave in (True, False):
        asyncio.run(session(start("serve", "--config", path), leave=leave))


async def test_sigusr1_ends_it_with_the_last_allocation_and_sigusr2_reads_the_certificate(
    start: Start, tmp_path: Path
) -> None:
    make_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    tls = ("--tls-listen", "127.0.0.1:0", "--tls-cert", str(tmp_path / "cert.pem"), "--tls-key")
    process = start("serve", *LISTEN, *tls, str(tmp_path / "key.pem"), "--user", "alice:open sesame")
    said = ready(process)
    process.signal(signal.SIGUSR2)
    process.until("the certificate was read again")
    (tmp_path / "cert.pem").write_text("nonsense")
    process.signal(signal.SIGUSR2)
    process.until("the certificate is not read again")

    async with client(said["turn"]):
        process.signal(signal.SIGUSR1)
        await asyncio.to_thread(process.until, "draining 1 allocations until they end")
        with pytest.raises(TransactionError):
            await client(said["turn"]).allocate()
        assert process.process.poll() is None
    assert process.wait() == 0


def test_signals_before_the_server_is_ready_do_no_harm(start: Start) -> None:
    process = start("serve", *LISTEN)
    status = Path(f"/proc/{process.process.pid}/status")
    while not int(re.findall(r"SigIgn:\s*([0-9a-f]+)", status.read_text())[0], 16) & 1 << (signal.SIGHUP - 1):
        assert process.process.poll() is None
    for number in (signal.SIGHUP, signal.SIGUSR2):
        process.signal(number)
    ready(process)
    process.signal(signal.SIGHUP)
    process.until("reloaded")
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


async def test_without_a_drain_sigterm_ends_it_at_once_and_logs_each_allocation(start: Start, tmp_path: Path) -> None:
    process = start("serve", "--config", configured(tmp_path, workers=1))

    relay = client(ready(process)["turn"])
    await relay.allocate(10)
    process.signal(signal.SIGTERM)
    assert await asyncio.get_running_loop().run_in_executor(None, process.wait) == 0
    await relay.close()

    line = process.until("the server stops")
    assert "user alice, ended: the server stops" in line


async def test_users_are_added_to_a_database_without_a_reload(start: Start, tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "users.db")
    database.execute(SCHEMA)
    database.commit()
    (tmp_path / "polynya.toml").write_text(
        f'listen = ["127.0.0.1:0"]\n[turn]\nrealm = "example.org"\nusers_database = "{tmp_path}/users.db"\n'
    )
    process = start("serve", "--config", str(tmp_path / "polynya.toml"))
    turn = ready(process)["turn"]
    _, realm, md5, sha256 = hash_line("dora", "example.org", "explorer").split(":")
    with database:
        database.execute("INSERT INTO turn_users VALUES (?, ?, ?, ?, NULL)", (realm, "dora", md5, sha256))
    database.close()

    async with client(turn, "explorer", "dora"):
        pass
    with pytest.raises(TransactionError, match="401"):
        await client(turn).allocate(5)
