"""Queues of outputs and events."""

from polynya.core.compact import Queue


def test_a_queue_hands_out_what_waits_oldest_first_and_once() -> None:
    queue: Queue[int] = Queue()
    assert queue.drain() == [] and not queue
    queue.append(1)
    queue.extend([2, 3])
    queue.append(4)
    assert list(queue) == [1, 2, 3, 4] and len(queue) == 4
    assert queue.drain() == [1, 2, 3, 4]
    assert queue.drain() == [] and len(queue) == 0


def test_what_was_drained_is_the_callers() -> None:
    queue: Queue[int] = Queue()
    queue.extend(range(2))
    first = queue.drain()
    queue.append(2)
    assert first == [0, 1] and queue.drain() == [2]


def test_nothing_is_shared_between_queues_that_were_empty() -> None:
    one, other = Queue[int](), Queue[int]()
    one.drain().append(9)
    one.append(1)
    assert other.drain() == []


def test_an_empty_extension_and_clear_leave_nothing() -> None:
    queue: Queue[int] = Queue()
    queue.extend([])
    assert not queue
    queue.append(1)
    queue.clear()
    assert queue.drain() == []
