"""Network namespaces for tests and benches: created with `ip`, named `pn-*`, removed with their processes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_numbers = count(1)


def ip(*arguments: str) -> str:
    """Run `ip ARGUMENTS` and return its output. Raises RuntimeError with its standard error if it fails."""
    done = subprocess.run(
        ["ip", *arguments], capture_output=True, text=True, env={**os.environ, "PATH": PATH}, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace with loopback up and without a DNS server."""

    name: str

    def ip(self, *arguments: str) -> str:
        """Run `ip` in the namespace."""
        return ip("-n", self.name, *arguments)

    def command(self, *command: str | Path) -> list[str]:
        """Return the command that runs `command` in the namespace."""
        return ["ip", "netns", "exec", self.name, *map(str, command)]

    def run(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program in the namespace, with the options of `subprocess.run`. Raises RuntimeError if it fails."""
        options = {"capture_output": True, "text": True, "timeout": 30, **options}
        done = subprocess.run(self.command(*command), env={**os.environ, "PATH": PATH}, check=False, **options)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def popen(self, *command: str | Path, **options: Any) -> subprocess.Popen[Any]:
        """Start a program in the namespace. The removal of the namespace kills it."""
        return subprocess.Popen(self.command(*command), env={**os.environ, "PATH": PATH}, **options)


@contextmanager
def namespace(label: str) -> Iterator[Namespace]:
    """Create a namespace `pn-LABEL-...` for the duration of the block."""
    name = f"pn-{label}-{os.getpid()}-{next(_numbers)}"
    etc = Path("/etc/netns") / name
    etc.mkdir(parents=True)
    try:
        # Nothing listens there, so a DNS lookup fails at once instead of after seconds.
        (etc / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        ip("netns", "add", name)
        try:
            ip("-n", name, "link", "set", "lo", "up")
            yield Namespace(name)
        finally:
            for pid in ip("netns", "pids", name).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            ip("netns", "delete", name)
    finally:
        (etc / "resolv.conf").unlink(missing_ok=True)
        etc.rmdir()


@dataclass(frozen=True, slots=True)
class End:
    """One end of a cable: its namespace, interface name and addresses (`HOST/PREFIX`)."""

    namespace: Namespace
    interface: str
    addresses: Sequence[str] = ()


def cable(left: End, right: End) -> None:
    """Connect two namespaces, or one with itself, by a veth pair."""
    peer = ("type", "veth", "peer", "name", right.interface, "netns", right.namespace.name)
    left.namespace.ip("link", "add", left.interface, *peer)
    for end in (left, right):
        # Only the given addresses: the kernel would add a link-local one later.
        end.namespace.ip("link", "set", end.interface, "addrgenmode", "none")
        for address in end.addresses:
            nodad = ["nodad"] if ":" in address else []
            end.namespace.ip("address", "add", address, "dev", end.interface, *nodad)
        end.namespace.ip("link", "set", end.interface, "up")


@contextmanager
def joined(left_addresses: Sequence[str], right_addresses: Sequence[str]) -> Iterator[tuple[Namespace, Namespace]]:
    """Create two namespaces with one interface `pn0` each, joined by a cable."""
    with ExitStack() as stack:
        left, right = stack.enter_context(namespace("left")), stack.enter_context(namespace("right"))
        cable(End(left, "pn0", left_addresses), End(right, "pn0", right_addresses))
        yield left, right


@contextmanager
def alone(addresses: Sequence[str]) -> Iterator[Namespace]:
    """Create a namespace with one interface `pn0`, whose cable ends in the same namespace."""
    with namespace("alone") as here:
        cable(End(here, "pn0", addresses), End(here, "pn1"))
        yield here
