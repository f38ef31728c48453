"""Lines of an answer that is streamed, each of a bounded length: NDJSON of other sidecars and of Docker.

Only the beginning of an unfinished line is held, so an answer without line ends takes the memory of one line. Lines go
to a function and not to a loop, because httpx's generators must be left by a cancellation: an exception or a ``break``
in a loop over them would leave them open.

A rule about all streamed lines belongs here; the meaning of a line belongs to its reader.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx
import trio


class TooLong(Exception):
    """A line is longer than its reader takes; the message is one line."""


async def read_lines(answer: httpx.Response, most: int, take: Callable[[bytes], bool]) -> None:
    """Pass the lines of an answer to ``take`` as they arrive, without empty ones, until it returns False.

    The answer must have no content encoding. Raises TooLong for a line of more than ``most`` bytes, exceptions of
    ``take``, and httpx's.
    """
    begun, failure = b"", None
    with trio.CancelScope() as stop:
        async for piece in answer.aiter_raw():
            if not stop.cancel_called:
                *whole, begun = (begun + piece).split(b"\n")
                try:
                    if not all(_passed_on(line, most, take) for line in whole):
                        stop.cancel()
                    elif len(begun) > most:
                        raise _too_long(most)
                except Exception as exc:
                    failure = exc
                    stop.cancel()
            # for other tasks, because many pieces of one byte may be ready at once
            await trio.lowlevel.cancel_shielded_checkpoint()
    if failure is not None:
        raise failure
    if not stop.cancel_called:
        _passed_on(begun, most, take)


def _passed_on(line: bytes, most: int, take: Callable[[bytes], bool]) -> bool:
    """Whether ``take`` wants more."""
    if len(line) > most:
        raise _too_long(most)
    return take(line) if line.strip() else True


def _too_long(most: int) -> TooLong:
    return TooLong(f"a line of the answer has more than {most} bytes")
