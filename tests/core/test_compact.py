"""Containers that cost little memory while they are empty."""

from sys import getsizeof

import pytest

from polynya.core.compact import NO_COUNTS, Queue, Table, count


def test_a_queue_drains_its_items_once_and_oldest_first() -> None:
    queue: Queue[int] = Queue()
    assert queue.drain() == [] and not queue
    queue.append(1)
    queue.extend([2, 3])
    queue.append(4)
    assert list(queue) == [1, 2, 3, 4] and len(queue) == 4
    assert queue.drain() == [1, 2, 3, 4]
    assert queue.drain() == [] and len(queue) == 0


def test_a_drained_list_is_not_changed_later() -> None:
    queue: Queue[int] = Queue()
    queue.extend(range(2))
    first = queue.drain()
    queue.append(2)
    assert first == [0, 1] and queue.drain() == [2]


def test_empty_queues_share_no_items() -> None:
    one, other = Queue[int](), Queue[int]()
    one.drain().append(9)
    one.append(1)
    assert other.drain() == []


def test_an_empty_extension_and_clear_leave_the_queue_empty() -> None:
    queue: Queue[int] = Queue()
    queue.extend([])
    assert not queue
    queue.append(1)
    queue.clear()
    assert queue.drain() == []


def test_popleft_removes_the_oldest_item() -> None:
    queue: Queue[int] = Queue()
    queue.extend([1, 2])
    assert (queue.popleft(), queue.popleft()) == (1, 2)
    with pytest.raises(IndexError, match="empty"):
        queue.popleft()
    queue.append(3)
    assert queue.drain() == [3]


def test_a_table_frees_its_storage_with_its_last_entry() -> None:
    table: Table[int, int] = Table()
    empty = getsizeof(table)
    for number in range(100):
        table[number] = number
    for number in range(99):
        assert table.pop(number) == number
    del table[99]
    assert getsizeof(table) == empty and table.pop(5, None) is None


def test_counting_returns_new_counters() -> None:
    first = count(NO_COUNTS, "malformed")
    second = count(first, "malformed")
    assert (dict(NO_COUNTS), first, second) == ({}, {"malformed": 1}, {"malformed": 2})
