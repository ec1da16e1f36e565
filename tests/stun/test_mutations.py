"""Decoding raises DecodeError and nothing else, whatever arrives; `make fuzz` goes on where this ends."""

from collections import Counter

import pytest

from tests.stun.mutations import VALUES, Fuzzer, check, valid_messages

pytestmark = pytest.mark.slow

CASES = 100_000


def test_valid_messages_are_read() -> None:
    for data in valid_messages():
        assert (check(data) is None) == (data[4:8] != b"\x21\x12\xa4\x42")


def test_a_hundred_thousand_mutations_do_no_harm() -> None:
    fuzzer = Fuzzer(seed=8489)
    outcomes: Counter[bool] = Counter()
    seen = set()
    for number in range(CASES):
        data = fuzzer.case()
        try:
            message = check(data)
        except Exception as error:
            error.add_note(f"case {number} of seed 8489: {data.hex()}")
            raise
        outcomes[message is not None] += 1
        seen.update(message.attributes if message else ())
    assert seen == set(VALUES), "the cases no longer reach every attribute's decoder"
    assert min(outcomes.values()) > CASES / 10, f"the cases no longer reach both outcomes: {outcomes}"


def test_the_same_seed_gives_the_same_cases() -> None:
    one, other = Fuzzer(seed=1), Fuzzer(seed=1)
    assert [one.case() for _ in range(200)] == [other.case() for _ in range(200)]
