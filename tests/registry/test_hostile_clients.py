"""Clients that try it on: other forms of a target, two framings at once, floods. Both paths."""

from __future__ import annotations

import resource
import select
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from spegel_consul.http.server.connection import standing
from spegel_consul.http.server.connection_limits import ConnectionLimits
from spegel_consul.oci.digest import Digest

from .conftest import head

LAYER = bytes(range(251)) * 9000
DIGEST = Digest.of(LAYER)
CROWD = 2000
PATH = f"/v2/library/app/blobs/{DIGEST}"


@pytest.fixture
async def node(start_node: Any) -> Any:
    started = await start_node()
    started.store.add_content(LAYER)
    return started


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def exchange(node: Any, *pieces: bytes, half_close: bool = False) -> bytes:
    """All that comes back, until the server closes."""
    async with await trio.open_tcp_stream(*node.address) as stream:
        with trio.fail_after(20):
            received = b""
            try:
                for piece in pieces:
                    await stream.send_all(piece)
                if half_close:
                    await stream.send_eof()
                while data := await stream.receive_some(1 << 20):
                    received += data
            except trio.BrokenResourceError:
                pass
            return received


def request(line: str, *fields: str) -> bytes:
    return "\r\n".join([line, *fields, "", ""]).encode()


CLOSE = "Connection: close"


async def still_serves(node: Any) -> None:
    async with httpx.AsyncClient(verify=False, base_url=node.url, trust_env=False, timeout=10) as client:
        assert (await client.get(PATH)).content == LAYER


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (f"http://node:5000{PATH}?ns=docker.io", "node:5000", 200),
        (f"HTTP://10.0.0.7{PATH}", "another", 200),
        (f"https://[2001:db8::1]:5000{PATH}", "x", 200),
        ("http://node/v2/", "node", 200),
        ("http://node", "node", 404),
        ("http://node?a=b", "node", 404),
        (f"http://user@node{PATH}", "node", 404),
        (f"ftp://node{PATH}", "node", 404),
        (f"http://{PATH}", "node", 404),
        ("*", "node", 404),
        ("node:443", "node", 404),
    ],
)
async def test_forms_of_a_target(
    node: Any, target: str, host: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """RFC 9112, 3.2: a server must take absolute-form; the others are for proxies."""
    answer = await exchange(node, request(f"GET {target} HTTP/1.1", f"Host: {host}", CLOSE))
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    if DIGEST in target and status == 200:
        assert answer.endswith(LAYER)
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err


INNER = request(f"GET {PATH} HTTP/1.1", "Host: smuggled", CLOSE)


@pytest.mark.parametrize(
    "fields",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 0"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding : chunked",),
        ("Content-Length: 0", "Content-Length: 5"),
        ("Content-Length: +5",),
        ("Content-Length: 0x5",),
        ("Content-Length: -1",),
        ("Content-Length: 9999999999999999999999999",),
        ("X: y\rContent-Length: 5",),
        ("X: y\0z",),
        ("Host: other",),
    ],
    ids=repr,
)
@pytest.mark.parametrize("path", ["/v2/", PATH])
async def test_what_can_be_read_in_two_ways_is_refused_and_the_connection_closed(
    node: Any, fields: tuple[str, ...], path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = await exchange(node, request(f"GET {path} HTTP/1.1", "Host: x", *fields) + b"0\r\n\r\n" + INNER)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert answer.count(b"HTTP/1.1 ") == 1, "the request behind it was answered"
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err


@pytest.mark.parametrize(
    "body",
    [
        ("Content-Length: 5", b"abcde"),
        ("Transfer-Encoding: chunked", b"5\r\nabcde\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", b"ffff\r\n" + bytes(0xFFFF) + b"\r\n0\r\nTrailer: x\r\n\r\n"),
        ("Content-Length: 3000000", bytes(3_000_000)),
    ],
    ids=["length", "chunks", "trailer", "long"],
)
async def test_a_body_is_read_and_ignored(node: Any, body: tuple[str, bytes]) -> None:
    field, content = body
    answer = await exchange(node, request(f"GET {PATH} HTTP/1.1", "Host: x", field), content + INNER)
    if answer or len(content) < 100:  # a reset may overtake it, when more was sent than was read
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(LAYER) in (1, 2)  # the second request is answered, if the body was there in time
    await still_serves(node)


async def test_a_refused_client_is_no_error_of_ours(node: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        assert (await exchange(node, b"\x16\x03\x01 what\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    await wait_all_tasks_blocked(0.05)
    captured = capfd.readouterr()
    assert "connection ended" not in captured.out + captured.err


async def test_a_body_without_end_does_not_outlive_the_answer(node: Any) -> None:
    async with await trio.open_tcp_stream(*node.address) as stream:
        with trio.fail_after(20):
            await stream.send_all(request(f"GET {PATH} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked"))

            async def pour() -> None:
                with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                    while True:
                        await stream.send_all(b"400\r\n" + bytes(0x400) + b"\r\n")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(pour)
    await still_serves(node)


@pytest.mark.parametrize("start_node", ["fast path"], indirect=True)
async def test_a_crowd_of_slow_and_silent_clients(node: Any, many_files: None) -> None:
    """2,000 connections, each with another beginning of a request, cost neither the others' answers nor anything
    that stays."""
    await still_serves(node)
    await wait_all_tasks_blocked(0.01)
    files, tasks = open_files(), trio.lowlevel.current_statistics().tasks_living
    beginnings = [
        b"",
        b"G",
        b"GET /v2/ HTTP/1.1\r\nHost",
        b"\x16\x03\x01",
        b"GET " + PATH.encode() + b" HTTP/1.1\r\n",
        b"\r\n",
    ]
    streams: list[trio.SocketStream] = []
    before = resident()
    with trio.fail_after(60):
        for number in range(CROWD):
            stream = await trio.open_tcp_stream(*node.address)
            streams.append(stream)
            if beginning := beginnings[number % len(beginnings)]:
                await stream.send_all(beginning)
        for _ in range(3):
            for stream in streams[1::50]:
                with suppress(trio.BrokenResourceError):  # what can't become a request was refused already
                    await stream.send_all(b"a")  # a drop now and then
            await still_serves(node)
    assert resident() - before < 200 << 20
    for stream in streams:
        await stream.aclose()
    with trio.fail_after(20):
        while open_files() > files + 4 or trio.lowlevel.current_statistics().tasks_living > tasks + 4:
            await trio.sleep(0.05)


async def test_a_request_that_never_ends_is_given_up(start_node: Any) -> None:
    node = await start_node(keep_alive=0.5)
    async with await trio.open_tcp_stream(*node.address) as stream:
        await stream.send_all(b"GET /v2/ HTTP/1.1\r\n")
        started = trio.current_time()
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(10):
            while True:
                await stream.send_all(b"X: y\r\n")
                await trio.sleep(0.05)
        assert trio.current_time() - started < 5


async def test_bytes_of_a_transfer_that_the_client_leaves_are_counted(start_node: Any) -> None:
    holder, asker = await start_node(), await start_node()
    huge = bytes(64 << 20)
    digest = holder.store.add_content(huge)
    asker.router.knows(holder)
    for node, source in ((holder, "own"), (asker, "peer")):
        before = node.metric("spegel_served_bytes_total", {"source": source})
        got = 0
        async with await trio.open_tcp_stream(*node.address) as stream:
            await stream.send_all(request(f"GET /v2/a/blobs/{digest} HTTP/1.1", "Host: x"))
            while got < 9 << 20:
                got += len(await stream.receive_some(1 << 20))
        with trio.fail_after(10):
            while (sent := node.metric("spegel_served_bytes_total", {"source": source}) - before) < (8 << 20):
                await trio.sleep(0.02)
        assert sent < len(huge)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def test_a_peer_gets_of_the_client_what_is_on_the_list_and_nothing_else(start_node: Any, start_peer: Any) -> None:
    node = await start_node()
    peer = await start_peer(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")
    node.router.knows(peer.address)
    given = ("Authorization: Bearer t", "Proxy-Authorization: Basic p", "Cookie: c=d", "X-Consul-Token: t", "From: a@b")
    more = (
        "Forwarded: for=1",
        "X-Forwarded-For: 1.2.3.4",
        "Referer: http://r/",
        "User-Agent: secret/1",
        "Range: bytes=5-",
    )
    asked = request(f"GET {PATH} HTTP/1.1", "Host: x", *given, *more, "X-Request-Id: id", "Accept: a/b", CLOSE)
    assert (await exchange(node, asked)).startswith(b"HTTP/1.1 404 ")
    line, *fields = peer.requests[0].decode().rstrip().split("\r\n")
    assert line == f"GET {PATH}?ns=docker.io HTTP/1.1"
    assert sorted(field.lower() for field in fields) == [
        "accept: */*",
        f"host: 127.0.0.1:{peer.address[1]}",
        "range: bytes=5-",
        "x-request-id: id",
        "x-spegel-mirrored: true",
    ]


@pytest.mark.parametrize("start_node", ["fast path"], indirect=True)
async def test_a_crowd_takes_its_connections_from_its_own_like(start_node: Any, many_files: None) -> None:
    """Of 2,000 connections of one address half of what other machines may have stands; others come and go."""
    holder, node = await start_node(), await start_node(limits=ConnectionLimits(8 * 256))
    digest = holder.store.add_content(LAYER)
    node.router.knows(holder)

    def stand() -> int:
        poll = select.poll()
        for sock in crowd:
            poll.register(sock, select.POLLRDHUP)
        return CROWD - len(poll.poll(0))

    async def pull(source: str) -> bytes:
        transport = httpx.AsyncHTTPTransport(verify=False, local_address=source)
        async with httpx.AsyncClient(base_url=node.url, transport=transport, timeout=10) as client:
            return (await client.get(f"/v2/library/app/blobs/{digest}?ns=docker.io")).content

    crowd: list[trio.socket.SocketType] = []
    files = open_files()
    with trio.fail_after(60):
        for _ in range(CROWD):
            crowd.append(trio.socket.socket())
            await crowd[-1].bind(("127.0.0.2", 0))
            await crowd[-1].connect(node.address)
        assert await pull("127.0.0.1") == LAYER
        assert await pull("127.0.0.3") == LAYER
        while stand() > 256:
            await trio.sleep(0.01)
        assert stand() == 256
        assert open_files() < files + CROWD + 256 + 50, "those that were refused are gone"
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await pull("127.0.0.2")
        for sock in crowd:
            sock.close()
        while standing[node.address[1]] > 8:  # those that are kept for another request
            await trio.sleep(0.01)
        assert await pull("127.0.0.2") == LAYER


@pytest.mark.parametrize("path", ["own", "of a peer", "small of a peer", "unknown", "/v2/", "/livez"])
@pytest.mark.parametrize("together", [True, False], ids=["at once", "then"])
async def test_a_client_that_has_said_all_and_says_so_gets_its_answer(
    start_node: Any, path: str, together: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """RFC 9112, 9.6: of the two directions each is closed for itself."""
    holder, node = await start_node(), await start_node()
    own, of_a_peer, small = LAYER + b"own", LAYER, b"small"
    node.store.add_content(own)
    for body in (of_a_peer, small):
        holder.store.add_content(body)
    node.router.knows(holder)
    bodies = {"own": own, "of a peer": of_a_peer, "small of a peer": small}
    body = bodies.get(path)
    target = path if path.startswith("/") else f"/v2/a/blobs/{Digest.of(body if body is not None else b'?')}"
    words = [request(f"GET {target} HTTP/1.1", "Host: x"), *([] if together else [b""])]
    answer = await exchange(node, *words, half_close=True)
    if body is None:
        assert answer.startswith(b"HTTP/1.1 404 " if path == "unknown" else b"HTTP/1.1 200 ")
    else:
        assert answer.partition(b"\r\n\r\n")[2] == body
    assert answer.count(b"HTTP/1.1 ") == 1
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err


async def test_a_half_closed_client_that_reads_slowly_gets_all(start_node: Any) -> None:
    node = await start_node()
    body = bytes(8 << 20)
    digest = node.store.add_content(body)
    got = 0
    async with await trio.open_tcp_stream(*node.address) as stream:
        await stream.send_all(request(f"GET /v2/a/blobs/{digest} HTTP/1.1", "Host: x"))
        await stream.send_eof()
        with trio.fail_after(30):
            while data := await stream.receive_some(1 << 20):
                got += len(data)
                await trio.sleep(0.1)
    assert got > len(body)


async def test_who_closes_both_ends_costs_no_more_than_a_moment(start_node: Any, start_peer: Any) -> None:
    node = await start_node()
    peer = await start_peer(head(200, len(LAYER)), *([LAYER[:9000], 0.1] * 200), then="hang")
    node.router.knows(peer.address)
    stream = await trio.open_tcp_stream(*node.address)
    await stream.send_all(request(f"GET {PATH} HTTP/1.1", "Host: x"))
    with trio.fail_after(10):
        while not peer.requests:
            await trio.sleep(0.01)
        await stream.aclose()
        while standing[node.address[1]]:
            await trio.sleep(0.01)


async def test_who_is_refused_hears_why_though_it_has_not_finished(node: Any) -> None:
    """RFC 9112, 9.6: what is sent and never read must not become a reset that overtakes the answer."""
    for _ in range(10):
        async with await trio.open_tcp_stream(*node.address) as stream:
            with trio.fail_after(20):
                await stream.send_all(b"\x16\x03\x01 what\r\n\r\n" + bytes(200_000))
                await trio.sleep(0.01)
                await stream.send_all(bytes(200_000))
                await stream.send_eof()
                received = b""
                while data := await stream.receive_some(1 << 16):
                    received += data
        assert received.startswith(b"HTTP/1.1 400 ")
        assert received.endswith(b"}")


@pytest.mark.parametrize("body", [b"zz\r\n", b"5\r\nabcde\r\n0\r\n\r\xc4\r\n\r\n", b"5\r\nabcdefgh"])
async def test_a_malformed_body_ends_the_connection_and_not_the_answer(
    node: Any, body: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(5):
        asked = request(f"GET {PATH} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked")
        answer = await exchange(node, asked + body + INNER)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(LAYER) == 1
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err
