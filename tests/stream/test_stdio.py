"""Standard input and output: pipes, files, and readers that close."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from polynya.stream.stdio import Writer, read_chunks


async def test_a_file_is_read_in_pieces_to_its_end(tmp_path: Path) -> None:
    data = os.urandom(100_001)
    path = tmp_path / "data"
    path.write_bytes(data)
    with path.open("rb") as file:
        chunks = [chunk async for chunk in read_chunks(file.fileno(), 1000)]
    assert {len(chunk) for chunk in chunks[:-1]} == {1000}
    assert b"".join(chunks) == data


async def test_a_pipe_is_read_as_it_is_written() -> None:
    reading, writing = os.pipe()
    try:
        source = read_chunks(reading, 1000)
        for piece in (b"one", b"two\x00\xff"):
            os.write(writing, piece)
            assert await anext(source) == piece
    finally:
        os.close(writing)
    assert [chunk async for chunk in source] == []
    os.close(reading)


async def test_everything_is_written_in_order_to_a_slow_reader() -> None:
    reading, writing = os.pipe()
    writer = Writer(writing)
    data = [bytes([number % 256]) * 1000 for number in range(1000)]

    async def write() -> None:
        for each in data:
            await writer.write(each)
        assert await writer.aclose(5)
        os.close(writing)

    task = asyncio.create_task(write())
    got = b"".join([chunk async for chunk in read_chunks(reading, 700)])
    await task
    assert got == b"".join(data)
    os.close(reading)


async def test_a_closed_reader_raises_broken_pipe() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = Writer(writing)
    await writer.write(b"x")
    assert not await writer.aclose(5)
    with pytest.raises(BrokenPipeError):
        await writer.write(b"y")
    os.close(writing)


async def test_a_blocked_reader_does_not_block_aclose() -> None:
    reading, writing = os.pipe()
    writer = Writer(writing)
    await writer.write(bytes(1_000_000))
    assert not await writer.aclose(0.05)
    os.close(reading)


async def test_an_input_that_cannot_be_read_raises_and_one_that_is_not_open_is_empty(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        await anext(read_chunks(directory, 1000))
    os.close(directory)
    assert [chunk async for chunk in read_chunks(directory, 1000)] == []


async def test_a_full_device_is_the_error_that_it_is() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    writer = Writer(full)
    await writer.write(b"x")
    assert not await writer.aclose(5)
    with pytest.raises(OSError, match="No space left"):
        await writer.write(b"y")
    os.close(full)
