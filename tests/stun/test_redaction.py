"""Redaction of what people attach to bug reports: consistent replacements, and packets that can still be decoded."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest

from polynya import Redactor
from polynya.core.addresses import Address, scope
from polynya.core.instants import Instant
from polynya.core.machine import IcmpKind
from polynya.core.packets import IcmpMessage, IpPacket, Protocol
from polynya.core.pcapng import PcapngWriter
from polynya.core.trace import TraceEvent
from polynya.stun import attributes as a
from polynya.stun.framing import encode_channel_data
from polynya.stun.integrity import IntegrityKey
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class, Method

ID = bytes(range(12))
KEY = IntegrityKey.short_term("p" * 22)
V4, V6 = Address("8.8.4.4", 4000), Address("2a00:1450::5", 4001)
SOURCE, DESTINATION = Address("192.168.7.3", 5000), Address("8.8.8.8", 3478)


def redacted(data: bytes, redactor: Redactor | None = None) -> bytes:
    return (redactor or Redactor()).payload(data)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.8.8.8:53 did not answer", "192.0.2.2:53 did not answer"),
        ("host 192.168.7.3:5000 -> srflx 8.8.8.8:1", "host 10.0.0.2:5000 -> srflx 192.0.2.2:1"),
        ("[2a00:1450::5]:99", "[2001:db8::1]:99"),
        ("fd12:3456::7, fe80::abcd%wlan0", "fd00::1, fe80::1%wlan0"),
        ("x ::ffff:8.8.4.4 y", "x ::ffff:192.0.2.2 y"),
        ("10.1.2.3/24.", "10.0.0.2/24."),
        ("127.0.0.1, ::1, 0.0.0.0, localhost", "127.0.0.1, ::1, 0.0.0.0, localhost"),
        ("stun:stun.corp.example.com:3478", "stun:name1.example:3478"),
        ("turn:[2a00:1450::5]:3478?transport=tcp", "turn:[2001:db8::1]:3478?transport=tcp"),
        ("4f2d-9b.local and 4f2d-9b.local", "name1.local and name1.local"),
        ("it refuses the credentials of 'bob@corp.example'", "it refuses the credentials of 'xxxxxxxxxxxxxxxb'"),
        ("http://user:pw@signal.corp.com:80/x", "http://xxxxxxb@name1.example:80/x"),
        ("room 'kitchen': no", "room 'xxxxxxb': no"),
        ("candidate:1 1 udp 1 a.local 9 typ host ufrag wxyz", "candidate:1 1 udp 1 name1.local 9 typ host ufrag xxxb"),
        ("a=ice-ufrag:wxyz\r\na=ice-pwd:secretsecret", "a=ice-ufrag:xxxb\r\na=ice-pwd:xxxxxxxxxxxc"),
        ("12:34:56 after 0.27 s, the ufrag that is sent", "12:34:56 after 0.27 s, the ufrag that is sent"),
        ("999.1.1.1 and 1.2.3", "999.1.1.1 and 1.2.3"),
    ],
)
def test_addresses_names_and_tokens_are_replaced_in_texts(text: str, expected: str) -> None:
    assert Redactor().text(text) == expected


def test_equal_values_stay_equal_and_different_ones_stay_different() -> None:
    redactor = Redactor()
    hosts = [f"9.9.{high}.{low}" for high in range(5) for low in range(250)]
    replaced = [redactor.host(host) for host in hosts]
    assert replaced == [redactor.host(host) for host in hosts]
    assert len(set(replaced)) == len(hosts)


def test_a_host_keeps_its_kind_and_is_never_its_own_replacement() -> None:
    redactor = Redactor()
    for host in ("192.0.2.2", "10.0.0.2", "169.254.0.2", "2001:db8::1", "fe80::1", "fd00::1", "100.64.0.1"):
        assert redactor.host(host) != host
        assert scope(redactor.host(host)) == scope(host)


def test_data_keeps_its_shape_and_secret_fields_are_replaced_whole() -> None:
    data = {
        "ufrag": "abcd",
        "remote_ufrag": None,
        "pairs": [{"local": "host 192.168.7.3:5000", "rtt": 0.5, "selected": True}],
        "reason": "the check for abcd:efgh was refused",
        "permissions": {"8.8.8.8": "granted"},
    }
    assert Redactor().data(data) == {
        "ufrag": "xxxb",
        "remote_ufrag": None,
        "pairs": [{"local": "host 10.0.0.2:5000", "rtt": 0.5, "selected": True}],
        "reason": "the check for xxxb:efgh was refused",
        "permissions": {"192.0.2.2": "granted"},
    }


def test_trace_events_keep_their_kind_and_time() -> None:
    event = TraceEvent(Instant(5), "alice", "ice", "server", "8.8.8.8:3478 answered", {"server": "8.8.8.8:3478"})
    found = Redactor().event(event)
    assert (found.at, found.node, found.kind) == (5, "alice", "server")
    assert found.reason == "192.0.2.2:3478 answered" and found.fields == {"server": "192.0.2.2:3478"}
    assert "8.8.8.8" in event.reason, "the event itself is not changed"


def test_a_check_keeps_its_attributes_and_loses_its_user_and_integrity() -> None:
    check = Message(
        Method.BINDING,
        Class.REQUEST,
        ID,
        {a.USERNAME: "efgh:abcd", a.PRIORITY: 7, a.ICE_CONTROLLING: 9, a.USE_CANDIDATE: True},
    ).encode(integrity=KEY, fingerprint=True)
    redactor = Redactor()
    found = decode(redacted(check, redactor))
    assert len(redacted(check, redactor)) == len(check)
    assert found.get(a.USERNAME) == f"{redactor.token('efgh')}:{redactor.token('abcd')}" != "efgh:abcd"
    assert found.get(a.PRIORITY) == 7 and found.get(a.ICE_CONTROLLING) == 9 and found.get(a.USE_CANDIDATE)
    assert found.transaction_id == ID
    assert found.has_fingerprint, "which is right for the rewritten message"
    assert not found.verify(KEY)


@pytest.mark.parametrize("address", [V4, V6])
@pytest.mark.parametrize("attribute", [a.MAPPED_ADDRESS, a.XOR_MAPPED_ADDRESS, a.RESPONSE_ORIGIN])
def test_addresses_in_messages_are_those_of_the_texts(attribute: a.Attribute[Address], address: Address) -> None:
    redactor = Redactor()
    message = Message(Method.BINDING, Class.SUCCESS, ID, {attribute: address}).encode()
    assert decode(redacted(message, redactor)).get(attribute) == redactor.address(address) != address


@pytest.mark.parametrize("attribute", [a.XOR_PEER_ADDRESS, a.XOR_RELAYED_ADDRESS, a.ALTERNATE_SERVER])
def test_every_one_of_several_addresses_is_replaced(attribute: a.Attribute[tuple[Address, ...]]) -> None:
    redactor = Redactor()
    message = Message(Method.ALLOCATE, Class.SUCCESS, ID, {attribute: (V4, V6)}).encode()
    assert decode(redacted(message, redactor)).get(attribute) == (redactor.address(V4), redactor.address(V6))


def test_what_could_identify_a_user_becomes_zeros() -> None:
    inner = Message(Method.BINDING, Class.SUCCESS, ID, {a.XOR_MAPPED_ADDRESS: V4}).encode()
    message = Message(
        Method.ALLOCATE, Class.REQUEST, ID, {a.NONCE: b"secretnonce1", a.REALM: "corp.example", a.DATA: inner}
    ).encode()
    found = redacted(message)
    for secret in (b"secretnonce1", b"corp.example"):
        assert secret in message and secret not in found
    data = decode(found).get(a.DATA)
    assert data is not None and decode(data).get(a.XOR_MAPPED_ADDRESS) == Address("192.0.2.2", V4.port)


@pytest.mark.parametrize(
    "data", [b"application data", b"", b"\x00", b"\x40\x00\x00\x05ab", b"\x16\xfe\xfd" + b"x" * 40]
)
def test_all_else_becomes_zeros_of_the_same_length(data: bytes) -> None:
    assert redacted(data) == bytes(len(data))


def test_channel_data_and_streams_of_frames_are_rewritten_frame_by_frame() -> None:
    check = Message(Method.BINDING, Class.INDICATION, ID, {}).encode(fingerprint=True)
    stream = encode_channel_data(0x4001, b"secret data", pad=True) + check
    found = redacted(stream)
    assert found[:4] == stream[:4] and b"secret" not in found
    assert found[-len(check) :] == check


@pytest.mark.parametrize("cut", [1, 19, 21, 30, 45])
def test_truncated_messages_are_rewritten_without_an_error(cut: int) -> None:
    message = Message(Method.BINDING, Class.SUCCESS, ID, {a.XOR_MAPPED_ADDRESS: V6, a.USERNAME: "a:b"}).encode()
    assert len(redacted(message[:cut])) == cut
    broken = message[:20] + b"\x00\x20\xff\xff" + message[24:]
    assert V6.packed not in redacted(broken) and len(redacted(broken)) == len(broken)


def test_an_icmp_error_is_redacted_with_the_packet_that_it_is_about() -> None:
    about = IpPacket(1, SOURCE, DESTINATION, Protocol.UDP, b"secret")
    icmp = IcmpMessage(kind=IcmpKind.PORT_UNREACHABLE, about=about)
    found = Redactor().packet(IpPacket(2, DESTINATION, SOURCE, Protocol.ICMP, icmp=icmp))
    assert found.icmp is not None and found.icmp.about is not None
    assert (found.source.host, found.icmp.about.destination.host) == ("192.0.2.2", "192.0.2.2")
    assert found.icmp.about.payload == bytes(6)


@pytest.mark.peer("tshark")
def test_tshark_decodes_a_redacted_capture(tmp_path: Path) -> None:
    redactor = Redactor()
    file = io.BytesIO()
    writer = PcapngWriter(file)
    check = Message(Method.BINDING, Class.REQUEST, ID, {a.USERNAME: "efgh:abcd"}).encode(
        integrity=KEY, fingerprint=True
    )
    answer = Message(Method.BINDING, Class.SUCCESS, ID, {a.XOR_MAPPED_ADDRESS: V4}).encode(fingerprint=True)
    for number, payload in enumerate((check, answer)):
        packet = IpPacket(number, SOURCE, DESTINATION, Protocol.UDP, payload)
        writer.write(Instant(number), "eth0", redactor.packet(packet))
    capture = tmp_path / "redacted.pcapng"
    capture.write_bytes(file.getvalue())
    wanted = ["ip.dst", "udp.checksum.status", "stun.att.username", "stun.att.ipv4", "stun.att.crc32.status"]
    command = ["tshark", "-r", capture, "-o", "udp.check_checksum:TRUE", "-T", "fields"]
    command += [option for field in [*wanted, "_ws.malformed"] for option in ("-e", field)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    users = f"{redactor.token('efgh')}:{redactor.token('abcd')}"
    assert [line.split("\t") for line in shown] == [
        ["192.0.2.2", "1", users, "", "1", ""],
        ["192.0.2.2", "1", "", redactor.host(V4.host), "1", ""],
    ]
