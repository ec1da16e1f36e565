"""The option `--redact`: traces, captures and reports without addresses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polynya import Address, Redactor
from polynya.cli import common
from polynya.cli.app import app
from polynya.core.instants import Instant
from polynya.core.packets import IpPacket, Protocol

pytestmark = pytest.mark.slow

SECRET, OTHER = Address("8.8.4.4", 5000), Address("192.168.7.3", 5001)


def test_trace_and_capture_have_the_same_replacements(tmp_path: Path) -> None:
    trace, capture, redactor = tmp_path / "trace", tmp_path / "capture", Redactor()
    with common.tracing("here", trace, capture, redactor) as (tracer, capturing):
        assert capturing is not None
        tracer.message_dropped(f"it came from {OTHER}", now=Instant(0), remote=SECRET)
        capturing(Instant(0), IpPacket(1, OTHER, SECRET, Protocol.UDP, b"application"))
    written, captured = trace.read_text(), capture.read_bytes()
    for address in (SECRET, OTHER):
        assert address.host not in written and address.packed not in captured
        assert str(redactor.address(address)) in written and redactor.address(address).packed in captured
    assert b"application" not in captured


def test_gather_shows_loopback_addresses_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        app(["gather", "--redact", "--json", "--loopback", "--interface", "lo", "--family", "4"], prog_name="polynya")
    [candidate] = json.loads(capsys.readouterr().out)["candidates"]
    assert (end.value.code, candidate["address"]) == (0, "127.0.0.1")
