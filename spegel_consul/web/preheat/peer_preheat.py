"""Asks a peer's sidecar to have its runtimes pull an image, and reads its lines (NDJSON) until the last one.

Whatever the peer does ends in a state with a reason: it can't be reached, refuses, is older, hangs, sends junk, or its
connection ends. It may send at most one line of 64 KiB at a time and some MiB in all.

A rule about the answers of a peer belongs here; the fields of a line belong to
:mod:`spegel_consul.web.preheat.preheat_report`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import httpx

from spegel_consul.error_words import in_words
from spegel_consul.http.bounded_lines import TooLong, read_lines
from spegel_consul.peers import host_port
from spegel_consul.web.preheat.preheat_report import BadLine, NodePreheat, State
from spegel_consul.web.report_stream import STREAM

PATH = "/api/preheat/own"
CONNECT_TIMEOUT = 5.0
SILENCE = 20.0
"""Seconds without a line after which a peer counts as hung; a line comes each second."""
_LONGEST_LINE = 64 << 10
_LONGEST_ANSWER = 16 << 20


async def ask(
    client: httpx.AsyncClient,
    metrics: tuple[str, int],
    image: str,
    within: float,
    headers: Mapping[str, str],
    changed: Callable[[NodePreheat], None],
) -> None:
    """Ask the peer with this metrics port; ``changed`` gets each state, the last one is done or failed.

    ``within``: the time limit of the pull, in seconds, for the peer to keep. Does not raise.
    """
    where, now = host_port(*metrics), NodePreheat()

    def tell(found: NodePreheat) -> None:
        nonlocal now
        now = found
        changed(found)

    def fail(reason: str) -> None:
        changed(NodePreheat.failed(reason, now.pulls))

    try:
        async with client.stream(
            "POST",
            f"http://{where}{PATH}",
            params={"image": image, "within": f"{within:g}"},
            headers={"accept": STREAM, **headers},
            timeout=httpx.Timeout(SILENCE, connect=CONNECT_TIMEOUT),
        ) as answer:
            if not await _read(answer, where, tell):
                fail(f"the connection to {where} ended before the pull")
    except httpx.ConnectError as exc:
        fail(f"{where} can't be reached: {in_words(exc)}; peers must reach its --metrics-addr")
    except httpx.ConnectTimeout:
        fail(f"{where} does not accept connections within {CONNECT_TIMEOUT:g} s")
    except httpx.ReadTimeout:
        fail(f"{where} sent nothing for {SILENCE:g} s: it hangs")
    except (httpx.HTTPError, TooLong, BadLine, _Refused) as exc:
        fail(f"{where}: {in_words(exc)}")


class _Refused(Exception):
    """The peer does not take part; the message is its reason."""


async def _read(answer: httpx.Response, where: str, tell: Callable[[NodePreheat], None]) -> bool:
    """Pass on the lines' states; False if the answer ends before the last one."""
    length, ended = 0, False

    def take(line: bytes) -> bool:
        nonlocal length, ended
        length += len(line)
        if length > _LONGEST_ANSWER:
            raise BadLine("the answer has no end")
        document = _document(line)
        if answer.status_code != 200:
            raise _Refused(_reason(answer.status_code, document))
        if document is None:
            raise BadLine("the answer is no report of a preheat")
        found = NodePreheat.parse(document)
        done = document.get("done") is True
        if done and found.state not in (State.DONE, State.FAILED):
            raise BadLine("the last line of the answer has no result")
        if done or found.state in (State.WAITING, State.PULLING):
            tell(found)
        ended = done
        return not done

    await read_lines(answer, _LONGEST_LINE, take)
    if answer.status_code != 200:
        raise _Refused(_reason(answer.status_code, None))
    return ended


def _document(line: bytes) -> dict[str, object] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _reason(status: int, document: dict[str, object] | None) -> str:
    message = document.get("error") if document is not None else None
    if isinstance(message, str):
        return message
    if status in (404, 405):
        return "its sidecar is an older version, without preheat"
    return f"it answered with status {status}"
