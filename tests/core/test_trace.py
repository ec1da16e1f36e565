"""The trace: its schema, writing and reading, and the refusal of unknown kinds and secrets."""

from __future__ import annotations

import inspect
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polynya.core.addresses import Address
from polynya.core.flows import Flow, Transport
from polynya.core.instants import Instant
from polynya.core.trace import (
    KINDS,
    NO_TRACE,
    SECRET_FIELDS,
    VERSION,
    Json,
    TraceEvent,
    Tracer,
    TraceWriter,
    check,
    read_trace,
)

HEADER = f'{{"trace":"polynya","version":{VERSION}}}\n'
RESERVED = {"t", "node", "machine", "kind", "reason"}

text = st.text(max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def events(draw: st.DrawFn) -> TraceEvent:
    kind = draw(st.sampled_from(list(KINDS)))
    names = [*sorted(KINDS[kind]), *draw(st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), max_size=2))]
    fields = {name: draw(json_values) for name in names if name not in RESERVED | SECRET_FIELDS}
    return TraceEvent(Instant(draw(st.integers(0, 2**62))), draw(text), draw(text), kind, draw(text), fields)


def write(events: list[TraceEvent]) -> str:
    file = io.StringIO()
    writer = TraceWriter(file)
    for event in events:
        writer(event)
    return file.getvalue()


@settings(max_examples=50)  # each draws several events
@given(st.lists(events(), max_size=5))
def test_a_trace_is_read_as_it_was_written(written: list[TraceEvent]) -> None:
    assert read_trace(io.StringIO(write(written))) == written


@settings(max_examples=50)  # each draws several events
@given(st.lists(events(), max_size=5))
def test_each_event_is_a_line_of_ascii_json(written: list[TraceEvent]) -> None:
    lines = write(written).splitlines()
    assert len(lines) == len(written) + 1
    assert all(line.isascii() and isinstance(json.loads(line), dict) for line in lines)


def test_the_first_line_names_the_schema_and_its_version() -> None:
    assert write([]) == HEADER


def test_an_event_is_written_with_its_fixed_fields_first() -> None:
    event = TraceEvent(Instant(1_500_000_000), "alice", "ice", "agent", "its check was answered", {"old": 1, "new": 2})
    assert event.to_json() == (
        '{"t":1500000000,"node":"alice","machine":"ice","kind":"agent",'
        '"reason":"its check was answered","old":1,"new":2}'
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_requires_its_fields(kind: str) -> None:
    whole: dict[str, Json] = dict.fromkeys(KINDS[kind], "x")
    check(kind, whole)
    check(kind, {**whole, "more": 1})
    for name in KINDS[kind]:
        with pytest.raises(ValueError, match=f"lacks {name}"):
            check(kind, {other: "x" for other in whole if other != name})


def test_no_kind_requires_a_field_that_would_be_refused() -> None:
    assert {kind: fields & (SECRET_FIELDS | RESERVED) for kind, fields in KINDS.items()} == dict.fromkeys(
        KINDS, frozenset()
    )


def test_an_unknown_kind_raises_value_error() -> None:
    with pytest.raises(ValueError, match="no kind 'gossip'"):
        check("gossip", {})


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_tracer_has_a_method_for_each_kind_with_its_fields(kind: str) -> None:
    parameters = inspect.signature(getattr(Tracer, kind.replace("-", "_"))).parameters.values()
    required = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    assert required == KINDS[kind] | {"now"}
    seen: list[TraceEvent] = []
    getattr(Tracer(seen.append, "alice"), kind.replace("-", "_"))(
        "why", now=Instant(7), **dict.fromkeys(KINDS[kind], 1)
    )
    assert [(event.kind, event.reason, event.at, event.fields) for event in seen] == [
        (kind, "why", 7, dict.fromkeys(KINDS[kind], 1))
    ]


@pytest.mark.parametrize("field", sorted(SECRET_FIELDS))
def test_a_secret_is_refused_before_it_reaches_the_sink(field: str) -> None:
    seen: list[TraceEvent] = []
    fields: dict[str, Any] = {field: "hunter2"}
    with pytest.raises(ValueError, match=field):
        Tracer(seen.append, "alice").note(now=Instant(0), **fields)
    assert seen == []


def test_without_a_sink_no_field_is_evaluated() -> None:
    assert NO_TRACE.enabled is False
    NO_TRACE.note("dropped", now=Instant(0), value=lambda: pytest.fail("a field was evaluated without a sink"))


def test_fields_are_turned_into_json_when_a_sink_is_attached() -> None:
    seen: list[TraceEvent] = []
    address = Address("192.0.2.1", 5000)
    Tracer(seen.append).bind(agent="abcd").note(
        now=Instant(0),
        address=address,
        flow=Flow(3),
        enum=Transport.TCP,
        late=lambda: [address],
        pair=(1, None),
        no=False,
    )
    assert [event.fields for event in seen] == [
        {
            "address": "192.0.2.1:5000",
            "flow": "flow 3",
            "enum": "tcp",
            "late": ["192.0.2.1:5000"],
            "pair": [1, None],
            "no": False,
            "agent": "abcd",
        }
    ]


def test_a_tracer_sets_node_and_machine() -> None:
    seen: list[TraceEvent] = []
    tracer = Tracer(seen.append, "alice", "session")
    tracer.of("ice").note("one", now=Instant(3))
    tracer.at_node("bob", "nat").note("two", now=Instant(4))
    tracer.note(now=Instant(5))
    assert tracer.enabled
    assert [(event.at, event.node, event.machine, event.reason) for event in seen] == [
        (3, "alice", "ice", "one"),
        (4, "bob", "nat", "two"),
        (5, "alice", "session", ""),
    ]


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ("", 1),
        ("\n", 1),
        ("[]\n", 1),
        ('{"trace":"polynya","version":999}\n', 1),
        ('{"trace":"other","version":1}\n', 1),
        (HEADER + "not json\n", 2),
        (HEADER + "3\n", 2),
        (HEADER + '{"t":1,"node":"a","machine":"b"}\n', 2),
        (HEADER + '{"t":1,"node":"a","machine":"b","kind":"gossip"}\n', 2),
        (HEADER + '{"t":"soon","node":"a","machine":"b","kind":"note"}\n', 2),
        (HEADER + '{"t":null,"node":"a","machine":"b","kind":"note"}\n', 2),
        (
            HEADER + '{"t":1,"node":"a","machine":"b","kind":"note"}\n{"t":2,"node":"a","machine":"b","kind":"icmp"}\n',
            3,
        ),
        (HEADER + '{"t":1,"node":"a","machine":"b","kind":"note","password":"x"}\n', 2),
    ],
)
def test_an_invalid_trace_is_refused_with_the_line_number(lines: str, line: int) -> None:
    with pytest.raises(ValueError, match=f"^line {line}: "):
        read_trace(io.StringIO(lines))


@given(st.text(max_size=60))
def test_arbitrary_lines_raise_only_value_error(line: str) -> None:
    try:
        read_trace(io.StringIO(HEADER + line))
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    assert not message or message.startswith("line ")


@pytest.mark.parametrize(
    "line",
    [
        '{"t":1e999,"node":"a","machine":"ice","kind":"note"}\n',
        '{"t":1,"node":' + "[" * 100_000 + "]" * 100_000 + "}\n",
    ],
    ids=["an endless time", "endless nesting"],
)
def test_values_beyond_json_raise_value_error_with_the_line_number(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        read_trace(io.StringIO(HEADER + line))
