"""The message channel between the control process and its workers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from polynya.plane.messages import LARGEST, Channel

Ends = tuple[Channel, Channel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made = Channel(ours), Channel(theirs)
    yield made
    for each in made:
        each.close()


def received(channel: Channel) -> list[tuple[list[object], int]]:
    """Return each batch with the number of its descriptors."""
    batches = []
    while True:
        items, descriptors = channel.receive()
        if not items:
            return batches
        batches.append((items, len(descriptors)))
        for descriptor in descriptors:
            os.close(descriptor)


def test_items_keep_their_order_over_many_batches(ends: Ends) -> None:
    ends[0].send(list(range(100)))
    assert [item for items, _ in received(ends[1]) for item in items] == list(range(100))


def test_descriptors_go_with_the_first_item_however_large_the_batch_is(ends: Ends) -> None:
    first, second = b"1" * (LARGEST * 2 // 3), b"2" * (LARGEST * 2 // 3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        ends[0].send([first, second], (sock.fileno(),))
    found = received(ends[1])
    ends[0].flush()
    found += received(ends[1])
    assert [(items[0] == each, number) for each, (items, number) in zip((first, second), found, strict=True)] == [
        (True, 1),
        (True, 0),
    ]


def test_batches_that_do_not_fit_are_queued_in_order_with_their_descriptors(ends: Ends) -> None:
    count = 0
    while not ends[0].waiting:
        ends[0].send([count, bytes(50_000)])
        count += 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        ends[0].send(["last"], (sock.fileno(),))
    found: list[tuple[list[object], int]] = []
    while len(found) <= count:
        found += received(ends[1])
        ends[0].flush()
    assert [items[0] for items, _ in found] == [*range(count), "last"]
    assert [number for _, number in found] == [0] * count + [1]


def test_send_and_receive_notice_a_closed_end(ends: Ends) -> None:
    ends[1].close()
    ends[0].send(["lost"])
    assert ends[0].closed
    ends[0].send(["ignored"])
    assert ends[0].receive() == ([], [])
