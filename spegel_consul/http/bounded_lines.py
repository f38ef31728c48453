"""Lines of an answer that is streamed, each of a bounded length: NDJSON of other sidecars and of Docker.

Only the beginning of an unfinished line is held, so an answer without line ends takes the memory of one line. A rule
about all streamed lines belongs here; the meaning of a line belongs to its reader.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import trio


class TooLong(Exception):
    """A line is longer than its reader takes; the message is one line."""


async def lines_of(answer: httpx.Response, most: int) -> AsyncIterator[bytes]:
    """The lines of an answer without content encoding, as they arrive, without empty ones. Raises TooLong."""
    begun = b""
    async for piece in answer.aiter_raw():
        *whole, begun = (begun + piece).split(b"\n")
        for line in whole:
            if len(line) > most:
                break
            if line.strip():
                yield line
        if len(begun) > most or any(len(line) > most for line in whole):
            raise TooLong(f"a line of the answer has more than {most} bytes")
        # for other tasks, because many pieces of one byte may be ready at once
        await trio.lowlevel.checkpoint()
    if begun.strip():
        yield begun
