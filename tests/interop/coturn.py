"""Runs coturn's `turnserver` on free loopback ports for a test."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from polynya.stun.message import Message
from polynya.stun.registry import Method
from tests.free_ports import free_port

USER, PASSWORD, REALM = "alice", "open sesame", "example.org"


@dataclass(frozen=True)
class Coturn:
    port: int
    tls_port: int
    certificate: Path
    log: Path


@contextmanager
def coturn(folder: Path, *options: str, auth: bool = True) -> Iterator[Coturn]:
    """Run a server on 127.0.0.1 and ::1 that relays to loopback peers."""
    port, tls_port = free_port(), free_port()
    certificate, key, log = folder / "cert.pem", folder / "key.pem", folder / f"coturn-{port}.log"
    if not certificate.exists():
        make_certificate(certificate, key)
    login = ["--lt-cred-mech", "--user", f"{USER}:{PASSWORD}"] if auth else ["--no-auth"]
    command = [
        "turnserver", "-n", "--realm", REALM, *login, "--no-cli", "--allow-loopback-peers", "--no-dtls",
        "--listening-ip=127.0.0.1", "--listening-ip=::1", "--relay-ip=127.0.0.1", "--relay-ip=::1",
        f"--listening-port={port}", f"--tls-listening-port={tls_port}", "--relay-threads=1", "--verbose",
        f"--cert={certificate}", f"--pkey={key}", f"--userdb={folder / 'turndb'}", f"--pidfile={folder / 'pid'}",
        "--log-file=stdout", *options,
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
        try:
            for number in (port, tls_port):
                _wait_for(number, process, log)
            _wait_for(port, process, log, udp=True)
            yield Coturn(port, tls_port, certificate, log)
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path, *, udp: bool = False) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until and process.poll() is None:
        try:
            for host in ("127.0.0.1", "::1"):
                if udp:
                    _ask(host, port)
                else:
                    socket.create_connection((host, port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"turnserver does not listen: {log.read_text(errors='replace')[-2000:]}")


def _ask(host: str, port: int) -> None:
    """Send a Binding request. Raises OSError without an answer."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.settimeout(1)
        asking.connect((host, port))
        asking.send(Message.request(Method.BINDING, bytes(12)).encode())
        asking.recv(2048)


def make_certificate(certificate: Path, key: Path, *, days: int = 1) -> None:
    """Write a self-signed certificate for `localhost` and both loopback addresses, valid for so many days."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(ip)) for ip in ("127.0.0.1", "::1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=3))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key.write_bytes(private.private_bytes(*pem))
