"""Network namespaces for tests and benches: made with `ip`, named `pn-*`, removed again with all that ran in them."""

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
    """Run `ip ARGUMENTS` and return what it prints; RuntimeError with its words when it fails."""
    done = subprocess.run(
        ["ip", *arguments], capture_output=True, text=True, env={**os.environ, "PATH": PATH}, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace of its own, with loopback up and nobody to ask for names."""

    name: str

    def ip(self, *arguments: str) -> str:
        """Run `ip` inside."""
        return ip("-n", self.name, *arguments)

    def command(self, *command: str | Path) -> list[str]:
        """The command that runs `command` inside."""
        return ["ip", "netns", "exec", self.name, *map(str, command)]

    def run(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end (`timeout` and the other options of `subprocess.run`); raises if it fails."""
        options = {"capture_output": True, "text": True, "timeout": 30, **options}
        done = subprocess.run(self.command(*command), env={**os.environ, "PATH": PATH}, check=False, **options)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def popen(self, *command: str | Path, **options: Any) -> subprocess.Popen[Any]:
        """Start a program inside. It is killed when the namespace is removed, if it still runs then."""
        return subprocess.Popen(self.command(*command), env={**os.environ, "PATH": PATH}, **options)


@contextmanager
def namespace(label: str) -> Iterator[Namespace]:
    """A namespace `pn-LABEL-...` that lives as long as the block."""
    name = f"pn-{label}-{os.getpid()}-{next(_numbers)}"
    etc = Path("/etc/netns") / name
    etc.mkdir(parents=True)
    try:
        # No server listens there, so a look-up is refused at once instead of waiting for seconds.
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
    """One end of a cable: where it is, its interface's name, and its addresses as `HOST/PREFIX`, of both families."""

    namespace: Namespace
    interface: str
    addresses: Sequence[str] = ()


def cable(left: End, right: End) -> None:
    """Join two namespaces, or one with itself, by a pair of interfaces."""
    peer = ("type", "veth", "peer", "name", right.interface, "netns", right.namespace.name)
    left.namespace.ip("link", "add", left.interface, *peer)
    for end in (left, right):
        # Only what the test names: no link-local address that appears when the kernel is ready.
        end.namespace.ip("link", "set", end.interface, "addrgenmode", "none")
        for address in end.addresses:
            nodad = ["nodad"] if ":" in address else []
            end.namespace.ip("address", "add", address, "dev", end.interface, *nodad)
        end.namespace.ip("link", "set", end.interface, "up")


@contextmanager
def joined(left_addresses: Sequence[str], right_addresses: Sequence[str]) -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces, each with one interface `pn0`, joined by a cable."""
    with ExitStack() as stack:
        left, right = stack.enter_context(namespace("left")), stack.enter_context(namespace("right"))
        cable(End(left, "pn0", left_addresses), End(right, "pn0", right_addresses))
        yield left, right


@contextmanager
def alone(addresses: Sequence[str]) -> Iterator[Namespace]:
    """One namespace with one interface `pn0`, whose cable ends in the same namespace."""
    with namespace("alone") as here:
        cable(End(here, "pn0", addresses), End(here, "pn1"))
        yield here
