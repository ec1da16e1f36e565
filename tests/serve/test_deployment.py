"""The files of examples/serve work as they are: the unit, the configuration, and the block for nginx."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from polynya.core.addresses import Address
from polynya.serve import Server
from polynya.serve.settings import load, server_config
from polynya.signaling.messages import PATH
from tests.cli import conftest as commands
from tests.cli.conftest import start
from tests.free_ports import free_port
from tests.loops import until
from tests.serve.turn_house import ANY4, config

pytestmark = pytest.mark.slow

__all__ = ["start"]

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "examples" / "serve"
PAGE = (ROOT / "docs" / "howto" / "serve.md").read_text(encoding="utf-8")


@pytest.mark.peer("systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (FILES / "polynya.service").read_text()
    program = Path(sys.executable).with_name("polynya")
    (tmp_path / "polynya.service").write_text(text.replace("/opt/polynya/bin/polynya", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "polynya.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "") and "polynya.service" not in done.stderr, done.stderr


def test_the_sample_configuration_is_valid(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s\n")
    (tmp_path / "token").write_text("t\n")
    text = (FILES / "polynya.toml").read_text()
    for name, path in (("shared-secret", "secret"), ("room-token", "token")):
        text = text.replace(f"/etc/polynya/{name}", str(tmp_path / path))
    (tmp_path / "polynya.toml").write_text(text)
    made = server_config(load(tmp_path / "polynya.toml", {("turn", "relay_ips"): ["127.0.0.1"]}))
    assert made.turn is not None and made.turn.shared_secrets == ("s",)
    assert made.http == (Address("127.0.0.1", 8080),) and made.admin == (Address("127.0.0.1", 9090),)
    assert made.trusted_proxies == ("127.0.0.1",) and made.room_tokens == ("t",)


@pytest.mark.parametrize("name", ["nginx.conf", "Caddyfile"])
def test_the_page_shows_the_files(name: str) -> None:
    assert (FILES / name).read_text(encoding="utf-8").expandtabs(4) in PAGE


def test_systemd_hears_when_the_server_is_ready_and_when_it_stops(
    start: Callable[..., commands.Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(commands.TIMEOUT)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        process = start("serve", "--listen", "127.0.0.1:0")
        assert process.line().startswith("ready ")
        assert manager.recv(100) == b"READY=1"
        process.signal(15)
        assert manager.recv(100) == b"STOPPING=1"
        assert process.wait() == 0


NGINX = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port};
{block}
    }}
}}
"""


@pytest.mark.peer("nginx")
async def test_nginx_forwards_signaling_and_nothing_else(tmp_path: Path) -> None:
    made = config(http=(ANY4,), admin=(ANY4,), trusted_proxies=("127.0.0.1",))
    async with Server(made) as server:
        port = free_port()
        block = (FILES / "nginx.conf").read_text().replace("127.0.0.1:8080", str(server.http_addresses[0]))
        (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path, port=port, block=block))
        program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") or "nginx"
        command = [program, "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path)]
        nginx = subprocess.Popen(command)  # noqa: ASYNC220 - it starts at once
        try:

            def listens() -> bool:
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", port)) == 0

            await until(listens, "nginx listens")
            url = f"ws://127.0.0.1:{port}{PATH}"
            own = f"http://127.0.0.1:{port}"
            async with connect(url, proxy=None, origin=own) as link:  # type: ignore[arg-type]
                await link.send('{"type":"join","version":1,"room":"r"}')
                assert json.loads(await link.recv())["type"] == "welcome"
            for path in ("/metrics", "/healthz", "/", "/signaling/x"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                assert (await reader.readline()).split()[1] in (b"403", b"404"), path
                writer.close()
        finally:
            nginx.terminate()
            nginx.wait(10)
