"""The census of HTTP connections."""

from __future__ import annotations

import pytest

from polynya.serve.census import Census


async def test_connections_are_limited_by_source_and_in_all(caplog: pytest.LogCaptureFixture) -> None:
    census = Census(6, 2, exempt=("192.0.2.1",))
    assert [census.enter("198.51.100.1") for _ in range(3)] == [True, True, False]
    assert [census.enter(f"2001:db8::{number}") for number in range(3)] == [True, True, False], "one /64"
    census.leave("198.51.100.1")
    assert census.enter("198.51.100.1")
    assert [census.enter("192.0.2.1") for _ in range(3)] == [True, True, False], "a proxy is limited in all only"
    assert len(caplog.records) == 1, "seldom"
    assert caplog.records[0].getMessage() == "an HTTP connection was refused: 198.51.100.1 has 2 already"


async def test_a_connection_without_an_ip_address_is_counted() -> None:
    census = Census(6, 1)
    assert [census.enter("") for _ in range(2)] == [True, False]
    census.leave("")
    assert census.enter("")
