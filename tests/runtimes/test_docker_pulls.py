"""Pulls that Docker is asked for, and all that it may answer."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from spegel_consul.oci.reference import Reference
from spegel_consul.runtimes.pulls import CantPull
from spegel_consul.runtimes.pulls.docker_pulls import DockerPulls

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
APP = Reference.parse("app:v1")
Say = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.fixture
def place() -> Iterator[Path]:
    """A path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="spegel-") as place:
        yield Path(place) / "d.sock"


class Fake:
    """A Docker that answers each request with ``say``."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self.asked: list[str] = []
        self.left = trio.Event()

    async def handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            seen = b""
            while b"\r\n\r\n" not in seen:
                seen += await stream.receive_some(1 << 16)
            self.asked.append(seen.split(b"\r\n")[0].decode())
            try:
                await self._say(stream)
            except trio.BrokenResourceError:
                self.left.set()


@asynccontextmanager
async def docker(place: Path, say: Say) -> AsyncIterator[Fake]:
    fake = Fake(say)
    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(str(place))
        listener.listen(4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, fake.handle, [trio.SocketListener(listener)])
            yield fake
            nursery.cancel_scope.cancel()


def says(*lines: dict[str, object] | bytes, head: bytes = HEAD) -> Say:
    async def say(stream: trio.SocketStream) -> None:
        text = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        await stream.send_all(head + b"".join(line + b"\r\n" for line in text))

    return say


def downloading(layer: object, current: object) -> dict[str, object]:
    return {"status": "Downloading", "id": layer, "progressDetail": {"current": current, "total": 100}}


async def pull(place: Path, say: Say, reference: Reference = APP, within: float = 60) -> tuple[list[int], list[str]]:
    received: list[int] = []
    async with docker(place, say) as fake:
        failure = None
        with trio.fail_after(20):
            try:
                await DockerPulls(place).pull(reference, within, received.append)
            except CantPull as exc:  # a nursery would make a group of it
                failure = exc
    if failure is not None:
        raise failure
    return received, fake.asked


async def test_the_bytes_of_all_layers_are_summed(place: Path) -> None:
    lines = [downloading("a", 10), downloading("b", 5), downloading("a", 30), downloading("a", 20)]
    received, asked = await pull(place, says(*lines, {"status": "Pull complete", "id": "a"}))
    assert received == [10, 15, 35, 35]
    method, target, _ = asked[0].split()
    assert (method, urlsplit(target).path) == ("POST", "/images/create")
    assert parse_qs(urlsplit(target).query) == {"fromImage": ["docker.io/library/app"], "tag": ["v1"]}


async def test_a_digest_is_asked_for_by_its_text(place: Path) -> None:
    digest = "sha256:" + "0" * 64
    _, asked = await pull(place, says(), Reference.parse(f"quay.io/team/app@{digest}"))
    query = parse_qs(urlsplit(asked[0].split()[1]).query)
    assert query == {"fromImage": ["quay.io/team/app"], "tag": [digest]}


@pytest.mark.parametrize(
    "line",
    [b"junk", b"[]", b"null", b"[" * 100_000, b"\xff", b"{}", *(
        json.dumps(downloading(layer, current)).encode()
        for layer, current in [(7, 1), ("a", "1"), ("a", -1), ("a", None), ("a", 1 << 60), ("a", [])]
    )],
)  # fmt: skip
async def test_lines_that_say_nothing_are_passed_over(place: Path, line: bytes) -> None:
    received, _ = await pull(place, says(line, downloading("a", 7)))
    assert received == [7]


@pytest.mark.parametrize(
    ("say", "reason", "missing"),
    [
        (says({"error": "x\ny: not found"}), "Docker: x y: not found", True),
        (says({"error": "manifest unknown"}), "manifest unknown", True),
        (says({"error": "no space left on device"}), "no space left", False),
        (says({"message": "none"}, head=HEAD.replace(b"200 OK", b"404 Not Found")), "Docker: none", True),
        (says(b"<html>", head=HEAD.replace(b"200 OK", b"500 No")), "status 500", False),
        (says(head=HEAD.replace(b"200 OK", b"500 No")), "status 500", False),
        (says(b"x" * (1 << 20)), "a line of the answer has more than", False),
        (says(head=b"SSH-2.0\r\n"), "broke off", False),
        (says(head=HEAD.replace(b"Connection: close", b"Content-Length: 50")), "broke off", False),
    ],
)
async def test_what_fails_says_why(place: Path, say: Say, reason: str, missing: bool) -> None:
    with pytest.raises(CantPull) as caught:
        await pull(place, say)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (caught.value.missing, caught.value.left_out) == (missing, False)


async def test_no_docker_there(place: Path) -> None:
    with pytest.raises(CantPull, match=str(place)):
        await DockerPulls(place).pull(APP, 5, lambda _: None)


async def test_a_docker_that_hangs_is_left_in_time(place: Path) -> None:
    with pytest.raises(CantPull, match="within 2 s"):
        await pull(place, lambda _: trio.sleep_forever(), within=2)


async def test_a_cancelled_pull_closes_the_connection(place: Path) -> None:
    async def endless(stream: trio.SocketStream) -> None:
        await stream.send_all(HEAD)
        while True:
            await stream.send_all(json.dumps(downloading("a", 1)).encode() + b"\r\n")
            await trio.sleep(0.01)

    async with docker(place, endless) as fake:
        with trio.CancelScope() as scope:
            await DockerPulls(place).pull(APP, 60, lambda _: scope.cancel())
        with trio.fail_after(10):
            await fake.left.wait()
