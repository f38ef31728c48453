"""Measurements that go wrong: each is told of, and the next one is measured."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import trio
from quart_trio import QuartTrio
from web.test_node import node

from spegel_consul.http.peer_client import PeerClient
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import MAX_MANIFEST_SIZE
from spegel_consul.oci.reference import Reference
from spegel_consul.web.api import _follow
from spegel_consul.web.queries import questions
from spegel_consul.web.queries.trial_pull import Piece, Puller, PullFailed, _parts
from spegel_consul.web.web_app import build_app

IMAGE = "docker.io/library/app:v1"
MEASURE = f"/api/measure?image={IMAGE}"
STREAMED = {"accept": "application/x-ndjson"}


async def streamed(app: QuartTrio) -> list[dict[str, Any]]:
    with trio.fail_after(10):
        response = await app.test_client().post(MEASURE, headers=STREAMED)
        assert response.status_code == 200
        return [json.loads(line) for line in (await response.get_data()).splitlines()]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> dict[str, Any]:
        return {"providers": []}

    async def fails(*_: Any) -> None:
        raise ZeroDivisionError("cannot be")

    monkeypatch.setattr(questions, "lookup", nothing)
    monkeypatch.setattr(Puller, "pull", fails)


@pytest.mark.usefixtures("broken")
async def test_one_that_fails_unforeseen_says_so_and_the_next_is_measured() -> None:
    async with build_app(node()).test_app() as app:
        for _ in range(2):
            last = (await streamed(app))[-1]
            assert last["done"] is True
            assert last["problem"] == "the measurement failed: ZeroDivisionError: cannot be"
        whole = await app.test_client().post(MEASURE)
        assert json.loads(await whole.get_data())["problem"] == last["problem"]


@pytest.mark.usefixtures("broken")
async def test_a_slow_reader_is_told_of_the_end_too() -> None:
    measurer = questions.Measurer(node())
    async with trio.open_nursery() as nursery:
        with trio.fail_after(10):
            measurement = measurer.prepare(IMAGE)
            measurer_runs = measurer.run

            async def after_the_first_line(measured: questions.Measurement) -> questions.Measurement:
                await trio.sleep(1.3)
                return await measurer_runs(measured)

            measurer.run = after_the_first_line  # type: ignore[method-assign]
            lines = []
            async for line in _follow(measurer, measurement, nursery):
                lines.append(json.loads(line))
                await trio.sleep(1)
    assert lines[0]["done"] is False
    assert lines[-1]["done"] is True
    assert lines[-1]["problem"]


@pytest.mark.parametrize("size", ["1e999", "-1e999", "NaN", '"x"', "null", "[]"])
def test_a_manifest_with_an_impossible_size_is_refused(size: str) -> None:
    part = f'{{"digest": "{Digest.of(b"")}", "size": {size}}}'
    with pytest.raises(PullFailed, match="does not name"):
        _parts(json.loads(f'{{"config": {part}, "layers": []}}'))


class Endless:
    """An answer whose body has no end, whatever its head has said."""

    status = 200

    def __init__(self) -> None:
        self.sent = 0
        self.discarded = False

    def header(self, name: bytes) -> str | None:
        return {b"docker-content-digest": str(Digest.of(b"")), b"content-length": "10"}.get(name)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        while True:
            await trio.lowlevel.checkpoint()
            self.sent += 64 << 10
            yield b"x" * (64 << 10)

    def discard(self) -> None:
        self.discarded = True


def test_an_image_without_layers_has_a_configuration() -> None:
    """Go writes null for a list without entries."""
    part = {"digest": "sha256:" + "0" * 64, "size": 5}
    assert [what for what, _, _ in _parts({"config": part, "layers": None})] == ["config"]
    for layers in ({}, "", 0, False):
        with pytest.raises(PullFailed, match="does not name"):
            _parts({"config": part, "layers": layers})
    with pytest.raises(PullFailed, match="does not name"):
        _parts({"config": part})


async def test_a_manifest_is_not_read_beyond_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Endless()

    async def request(*_: Any) -> Endless:
        return answer

    monkeypatch.setattr(PeerClient, "request", request)
    with trio.fail_after(10):
        async with Puller(("10.0.0.1", 5000)) as puller:
            with pytest.raises(PullFailed, match=rf"longer than {MAX_MANIFEST_SIZE} bytes"):
                await puller.pull(Reference.parse(IMAGE))
    assert answer.sent == MAX_MANIFEST_SIZE + (64 << 10)
    assert answer.discarded


class Ready:
    """A body that has come already: nothing of it has to be waited for."""

    status = 200

    def __init__(self, chunk: bytes, count: int) -> None:
        self._chunk, self._count = chunk, count

    def header(self, name: bytes) -> str | None:
        return None

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for _ in range(self._count):
            yield self._chunk

    def discard(self) -> None:
        pass


class Hasher:
    """Says which thread hashed how much."""

    def __init__(self) -> None:
        self.sizes: dict[bool, int] = {True: 0, False: 0}

    def update(self, data: bytes) -> None:
        self.sizes[threading.current_thread() is threading.main_thread()] += len(data)

    def hexdigest(self) -> str:
        return Digest.of(b"").encoded


@pytest.mark.parametrize(("size", "here"), [(256 << 10, False), (1 << 10, True)])
async def test_hashing_leaves_the_loop_to_others(monkeypatch: pytest.MonkeyPatch, size: int, here: bool) -> None:
    hasher, turns = Hasher(), 0
    monkeypatch.setattr(Digest, "hasher", lambda _: hasher)

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery, Puller(("10.0.0.1", 5000)) as puller:
        nursery.start_soon(others)
        with trio.fail_after(10):
            await puller._read(
                Ready(bytes(size), 50), Piece("layer 1", str(Digest.of(b"")), 0, 0.0), Digest.of(b""), None
            )  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()
    assert turns >= 45
    assert hasher.sizes == {here: 50 * size, not here: 0}


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_a_query_may_be_a_digest_of_any_algorithm(algorithm: str) -> None:
    digest = Digest.of(b"", algorithm)
    assert questions.parse(f" {digest} ") == (digest, None)
    with pytest.raises(questions.BadQuestion, match="does not name an image"):
        questions.parse_image(digest)
    with pytest.raises(questions.BadQuestion, match="hex digits"):
        questions.parse(digest[:-1])


@pytest.mark.parametrize("text", ["nginx:1.27", "docker.io/nginx:1.27", "index.docker.io/nginx:1.27"])
def test_a_query_means_the_image_that_docker_means(text: str) -> None:
    assert questions.parse(text)[0] == "docker.io/library/nginx:1.27"
