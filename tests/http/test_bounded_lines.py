"""Lines of an answer that is streamed, of whatever sizes its pieces are."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import trio

from spegel_consul.http.bounded_lines import TooLong, read_lines


class Pieces(httpx.AsyncByteStream):
    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.sent = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            await trio.lowlevel.checkpoint()
            self.sent += 1
            yield piece


async def lines(most: int, *pieces: bytes) -> list[bytes]:
    found: list[bytes] = []

    def take(line: bytes) -> bool:
        found.append(line)
        return line != b"stop"

    await read_lines(httpx.Response(200, stream=Pieces(*pieces)), most, take)
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 100])
async def test_lines_are_whole_whatever_the_pieces(size: int) -> None:
    text = b'{"a": 1}\n\n \r\n{"b": 2}\nend'
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert await lines(10, *pieces) == [b'{"a": 1}', b'{"b": 2}', b"end"]


async def test_a_long_line_is_refused_after_those_before_it() -> None:
    answer, found = Pieces(b"one\n", b"x" * 8, b"x" * 8, b"x" * 8), []
    with pytest.raises(TooLong, match="more than 10 bytes"):
        await read_lines(httpx.Response(200, stream=answer), 10, lambda line: not found.append(line))
    assert found == [b"one"]
    assert answer.sent == 3, "no more is read than the limit needs"


async def test_the_reader_stops_when_it_has_what_it_wants() -> None:
    assert await lines(10, b"one\nstop\n", b"two\n", b"three\n") == [b"one", b"stop"]


async def test_an_exception_of_the_reader_is_raised() -> None:
    def take(line: bytes) -> bool:
        raise KeyError(line)

    with pytest.raises(KeyError, match="one"):
        await read_lines(httpx.Response(200, stream=Pieces(b"one\ntwo\n", b"three\n")), 10, take)


async def test_a_long_line_that_ends_is_refused_too() -> None:
    with pytest.raises(TooLong):
        await lines(10, b"one\n" + b"x" * 11 + b"\ntwo\n")
