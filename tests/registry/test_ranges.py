"""Ranges of blobs: one, several, all of it; from the own store and through a neighbour, on both paths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings

from .conftest import head
from .image import BLOB_PATH, DIGEST, LAYER, STREAMED, TAG_PATH, get

SIZE = len(LAYER)
SIXTY_FOUR = "bytes=" + ",".join(f"{at * 1000}-{at * 1000 + 9}" for at in range(64))
_PART = re.compile(rb"content-type: ([^\r]+)\r\ncontent-range: bytes (\d+)-(\d+)/(\d+)\r\n\r\n")

Parts = list[tuple[int, bytes]]


def parts_of(response: httpx.Response) -> Parts:
    """The offsets and bytes of a multipart answer, which is read as strictly as it was framed."""
    assert response.status_code == 206
    assert "content-range" not in response.headers
    boundary = re.fullmatch(r"multipart/byteranges; boundary=([0-9a-zA-Z]{1,70})", response.headers["content-type"])
    assert boundary
    delimiter, body, found = b"--" + boundary[1].encode(), response.content, []
    assert len(body) == int(response.headers["content-length"])
    assert body.startswith(delimiter + b"\r\n")
    at = len(delimiter)
    while body[at : at + 2] == b"\r\n":
        part = _PART.match(body, at + 2)
        assert part
        assert part[1] == b"application/octet-stream"
        start, last, size = int(part[2]), int(part[3]), int(part[4])
        assert size == SIZE
        content = body[part.end() : part.end() + last + 1 - start]
        found.append((start, content))
        at = part.end() + len(content)
        assert body[at:].startswith(b"\r\n" + delimiter)
        at += 2 + len(delimiter)
    assert body[at:] == b"--\r\n"
    assert len(found) > 1
    return found


def expected(*spans: tuple[int, int]) -> Parts:
    return [(start, LAYER[start:stop]) for start, stop in spans]


@pytest.fixture(params=["own", "mirrored"])
async def node(request: pytest.FixtureRequest, pair: Any) -> Any:
    """A node that has the layer, or one whose neighbour has it."""
    return pair[request.param == "mirrored"]


@pytest.mark.parametrize(
    ("wanted", "spans"),
    [
        ("bytes=0-1,5-6", [(0, 2), (5, 7)]),
        ("bytes=5-6,0-1", [(5, 7), (0, 2)]),
        ("bytes= 0-1 ,\t5-6 , -3", [(0, 2), (5, 7), (SIZE - 3, SIZE)]),
        ("bytes=,0-1,,5-6,", [(0, 2), (5, 7)]),
        ("bytes=0-9,5-14,20-29", [(0, 15), (20, 30)]),
        ("bytes=20-29,0-9,10-14", [(20, 30), (0, 15)]),
        ("bytes=9000-9999,0-1,400-8999", [(400, 10000), (0, 2)]),
        (f"bytes=0-1,{SIZE}-,5-6,{SIZE + 5}-{SIZE + 9}", [(0, 2), (5, 7)]),
        (f"bytes=0-99,{SIZE - 9}-", [(0, 100), (SIZE - 9, SIZE)]),
        (f"bytes=1000000-2000000,3-3,{SIZE - 1}-{'9' * 40}", [(1000000, 2000001), (3, 4), (SIZE - 1, SIZE)]),
        (SIXTY_FOUR, [(at * 1000, at * 1000 + 10) for at in range(64)]),
    ],
    ids=repr,
)  # fmt: skip
async def test_several_ranges(node: Any, wanted: str, spans: list[tuple[int, int]]) -> None:
    response = await get(node, BLOB_PATH, range=wanted)
    assert parts_of(response) == expected(*spans)
    assert response.headers["docker-content-digest"] == DIGEST
    assert response.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("bytes=0-4,5-9", 0, 10),
        ("bytes=5-9,0-4", 0, 10),
        ("bytes=3-9,4-5", 3, 10),
        (f"bytes=7-9,{SIZE}-", 7, 10),
        (f"bytes={SIZE}-,7-9,-0", 7, 10),
        (f"bytes=-5,{SIZE - 9}-", SIZE - 9, SIZE),
        (f"bytes=0-{'9' * 18}", 0, SIZE),
        (f"bytes=-{'9' * 30}", 0, SIZE),
        (f"bytes={'0' * 30}5-{'0' * 30}9", 5, 10),
        (f"bytes=100-{'9' * 20}", 100, SIZE),
    ],
    ids=repr,
)
async def test_ranges_of_which_one_is_left(node: Any, wanted: str, start: int, stop: int) -> None:
    response = await get(node, BLOB_PATH, range=wanted)
    assert (response.status_code, response.content) == (206, LAYER[start:stop])
    assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert response.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    "wanted",
    [f"bytes={SIZE}-,{SIZE + 9}-{SIZE + 10}", "bytes=-0,-0", f"bytes={'9' * 20}-", f"bytes={'9' * 20}-{'9' * 21}"],
)
async def test_ranges_of_which_none_is_left(node: Any, wanted: str) -> None:
    response = await get(node, BLOB_PATH, range=wanted)
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize("wanted", ["bytes=0-1,9-5", "bytes=0-1;5-6", "bytes=0-1,x", f"bytes={'9' * 21}-{'8' * 21}"])
async def test_malformed_ranges_are_ignored(node: Any, wanted: str) -> None:
    response = await get(node, BLOB_PATH, range=wanted)
    assert (response.status_code, response.content) == (200, LAYER)


async def test_too_many_ranges_are_refused(node: Any) -> None:
    """Lazy snapshotters go over to single ranges on 400, and take a 200 with the whole layer as it comes."""
    wanted = "bytes=" + ",".join(f"{at * 10}-{at * 10 + 1}" for at in range(65))
    response = await get(node, BLOB_PATH, range=wanted)
    assert response.status_code == 400
    assert "64" in response.json()["errors"][0]["message"]
    assert (await get(node, BLOB_PATH, "HEAD", range=wanted)).status_code == 200
    assert (await get(node, TAG_PATH, range=wanted)).status_code == 200


async def test_an_open_range_from_the_first_byte_is_all_of_it(node: Any) -> None:
    """A runtime that got 206 would ask this host alone for the other pieces of a layer, and fail its pull on a miss."""
    for wanted in ("bytes=0-", "bytes= 0-", "bytes=000-", "bytes=0-,5-6", "bytes=5-6,0-", f"bytes=0-{'9' * 30}"):
        response = await get(node, BLOB_PATH, range=wanted)
        assert (response.status_code, response.content) == (200, LAYER)
        assert "content-range" not in response.headers


@pytest.mark.parametrize("wanted", ["bytes=0-", "bytes=5-9", "bytes=0-1,5-6", f"bytes={SIZE}-"])
async def test_head_has_no_ranges(node: Any, wanted: str) -> None:
    """RFC 9110, 14.2: Range is defined for GET."""
    response = await get(node, BLOB_PATH, "HEAD", range=wanted)
    assert (response.status_code, response.headers["content-length"]) == (200, str(SIZE))
    assert "content-range" not in response.headers


async def over_of(node: Any) -> Any:
    """The trace of its last request, which is over soon after the client has its bytes."""
    with trio.fail_after(5):
        while not node.mirror.traces.over:
            await trio.sleep(0.01)
    return node.mirror.traces.over[-1]


async def test_a_peer_sends_only_the_ranges(pair: Any) -> None:
    holder, asker = pair
    response = await get(asker, BLOB_PATH, range="bytes=0-1,5-6,9000-9999,20-21")
    assert len(parts_of(response)) == 4
    assert response.headers["x-spegel-served-by"] == f"127.0.0.1:{holder.address[1]}"
    with trio.fail_after(5):  # counted after the last byte has left
        while holder.metric("spegel_served_bytes_total", {"source": "own"}) != 1006:
            await trio.sleep(0.01)
        while asker.metric("spegel_mirror_requests_total", {"registry": "docker.io", "cache": "hit"}) != 1:
            await trio.sleep(0.01)
    assert asker.metric("spegel_served_bytes_total", {"source": "peer"}) == 1006
    over = await over_of(asker)
    assert (over.outcome, over.size, over.bytes) == ("hit", 1006, 1006)


def scripted(request: bytes, lie: bytes = b"") -> Sequence[bytes]:
    """What an honest registry answers to one range, with other bytes if there is a ``lie``."""
    wanted = re.search(rb"range: bytes=(\d+)-(\d*)\r\n", request)
    if wanted is None:
        return head(200, SIZE), LAYER
    start, stop = int(wanted[1]), min(int(wanted[2] or SIZE) + 1, SIZE)
    content = lie[: stop - start].ljust(stop - start, b"x") if lie else LAYER[start:stop]
    return head(206, stop - start, f"Content-Range: bytes {start}-{stop - 1}/{SIZE}"), content


TWO = "bytes=1000-1999,5000-5999"
TWO_PARTS = expected((1000, 2000), (5000, 6000))


async def test_peers_are_asked_for_one_range_at_a_time(start_node: Any, start_peer: Any) -> None:
    """Go's Spegel refuses several."""
    asker, peer = await start_node(), await start_peer(scripted)
    asker.router.knows(peer.address)
    assert parts_of(await get(asker, BLOB_PATH, range=TWO)) == TWO_PARTS
    wanted = [re.findall(rb"\r\nrange: ([^\r]*)\r\n", request) for request in peer.requests]
    assert wanted == [[b"bytes=1000-1999"], [b"bytes=5000-5999"]]


async def test_the_whole_is_no_answer_to_several_ranges(start_node: Any, start_peer: Any) -> None:
    asker, whole = await start_node(), await start_peer(head(200, SIZE), LAYER)
    asker.router.knows(whole.address)
    assert (await get(asker, BLOB_PATH, range=TWO)).status_code == 404
    assert not asker.mirror.peers.penalties.bars(Provider("peer0", whole.address)), (
        "RFC 9110, 14.2: Range may be ignored"
    )
    asker.router.knows(whole.address, (await start_peer(scripted)).address)
    assert parts_of(await get(asker, BLOB_PATH, range=TWO)) == TWO_PARTS


@pytest.mark.parametrize(
    "script",
    [
        (head(206, 8, "Content-Type: multipart/byteranges; boundary=x"), b"--x--\r\n"),
        (head(206, 1000, f"Content-Range: bytes 5000-5999/{SIZE}"), LAYER[5000:6000]),
        (head(206, 1000, "Content-Range: bytes 1000-1999/1500"), LAYER[1000:2000]),
        (head(206, 999, f"Content-Range: bytes 1000-1999/{SIZE}"), LAYER[1000:1999]),
        (head(206, 10, "Content-Range: bytes 0-9/10"), LAYER[:10]),
        (head(400, 0),),
        (head(416, 0, "Content-Range: bytes */5"),),
    ],
    ids=["multipart", "another range", "too small", "short", "unsatisfiable", "400", "416"],
)
async def test_answers_to_ranges_are_judged(start_node: Any, start_peer: Any, script: Any) -> None:
    asker = await start_node()
    bad, good = await start_peer(*script), await start_peer(scripted)
    asker.router.knows(bad.address, good.address)
    assert parts_of(await get(asker, BLOB_PATH, range=TWO)) == TWO_PARTS


async def test_a_part_goes_on_at_another_peer(start_node: Any, start_peer: Any) -> None:
    def half(request: bytes) -> Sequence[bytes]:
        start, body = scripted(request)
        return start, body[:300]

    asker, dying, good = await start_node(), await start_peer(half), await start_peer(scripted)
    asker.router.knows(dying.address, good.address)
    assert parts_of(await get(asker, BLOB_PATH, range=TWO)) == TWO_PARTS


async def test_parts_that_nobody_has_cut_the_answer(start_node: Any, start_peer: Any) -> None:
    def only_the_first(request: bytes) -> Sequence[bytes]:
        return scripted(request) if b"bytes=1000-" in request else [head(404, 0)]

    asker, peer = await start_node(), await start_peer(only_the_first)
    asker.router.knows(peer.address)
    with pytest.raises(httpx.RemoteProtocolError):
        await get(asker, BLOB_PATH, range=TWO)
    assert (await over_of(asker)).outcome == "cut"
    with trio.fail_after(5):
        while asker.metric("spegel_transfers_cut_total") != 1:
            await trio.sleep(0.01)


async def test_a_size_that_changes_between_parts_cuts_the_answer(start_node: Any, start_peer: Any) -> None:
    def fickle(request: bytes) -> Sequence[bytes]:
        if b"bytes=1000-" in request:
            return scripted(request)
        return head(206, 1000, f"Content-Range: bytes 5000-5999/{SIZE + 1}"), LAYER[5000:6000]

    asker, peer = await start_node(), await start_peer(fickle)
    asker.router.knows(peer.address)
    with pytest.raises(httpx.RemoteProtocolError):
        await get(asker, BLOB_PATH, range=TWO)


async def test_bytes_of_a_peer_can_not_become_parts(start_node: Any, start_peer: Any) -> None:
    """The boundary is another one each time, so nobody can send it in advance."""
    asker, seen = await start_node(), set()
    lie = b""
    for _ in range(3):
        peer = await start_peer(lambda request, lie=lie: scripted(request, lie or b"y"))
        asker.router.knows(peer.address)
        asker.mirror.peers.recent.drop(DIGEST, Provider("peer0", peer.address))
        response = await get(asker, BLOB_PATH, range=TWO)
        assert [(start, len(content)) for start, content in parts_of(response)] == [(1000, 1000), (5000, 1000)]
        boundary = response.headers["content-type"].rpartition("=")[2]
        assert boundary not in seen
        seen.add(boundary)
        lie = f"\r\n--{boundary}\r\ncontent-range: bytes 0-0/1\r\n\r\nZ\r\n--{boundary}--\r\n".encode()


async def test_all_by_a_range_is_held_and_verified(start_node: Any, start_peer: Any) -> None:
    asker, holder = await start_node(), await start_node()
    holder.store.add_content(LAYER)
    liar = await start_peer(head(200, SIZE), bytes(SIZE))
    asker.router.knows(liar.address, holder)
    response = await get(asker, BLOB_PATH, range="bytes=0-")
    assert (response.status_code, response.content) == (200, LAYER)
    assert asker.mirror.peers.penalties.bars(Provider("peer0", liar.address))


async def test_all_by_a_range_goes_on_at_another_peer(start_node: Any, start_peer: Any) -> None:
    def half(request: bytes) -> Sequence[bytes]:
        start, body = scripted(request)
        return start, body[: SIZE // 2]

    asker, dying, good = await start_node(settings=STREAMED), await start_peer(half), await start_peer(scripted)
    asker.router.knows(dying.address, good.address)
    response = await get(asker, BLOB_PATH, range="bytes=0-")
    assert (response.status_code, response.content) == (200, LAYER)


async def test_ranges_of_a_small_blob(start_node: Any) -> None:
    small = bytes(range(100))
    holder = await start_node()
    asker = await start_node(settings=MirrorSettings())
    path = f"/v2/library/app/blobs/{holder.store.add_content(small)}?ns=docker.io"
    asker.router.knows(holder)
    for node in (holder, asker):
        for _ in range(2):
            response = await get(node, path, range="bytes=90-,0-9")
            body = response.content
            assert body.count(small[90:]) == body.count(small[:10]) == 1
            assert body.index(small[90:]) < body.index(small[:10])
        assert (await get(node, path, range="bytes=0-")).status_code == 200


async def test_an_empty_blob_by_an_open_range(start_node: Any) -> None:
    node = await start_node()
    path = f"/v2/library/app/blobs/{node.store.add_content(b'')}?ns=docker.io"
    response = await get(node, path, range="bytes=0-")
    assert (response.status_code, response.content) == (200, b"")
    for wanted in ("bytes=0-5", "bytes=-5", "bytes=0-1,-5"):
        response = await get(node, path, range=wanted)
        assert (response.status_code, response.headers["content-range"]) == (416, "bytes */0")


async def test_what_the_index_has_and_the_disk_has_not(start_node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node, holder = await start_node(), await start_node()
    for each in (node, holder):
        each.store.add_content(LAYER)
    node.router.knows(holder)

    def gone(digest: Digest) -> Any:
        raise BlobUnknown(f"{digest} is gone")

    monkeypatch.setattr(node.store, "open", gone)
    monkeypatch.setattr(node.store, "file", lambda digest: None)
    assert parts_of(await get(node, BLOB_PATH, range=TWO)) == TWO_PARTS
    assert (await get(node, BLOB_PATH, range="bytes=5-9")).content == LAYER[5:10]
