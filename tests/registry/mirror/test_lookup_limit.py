"""One address has a bounded number of lookups in flight; what is beyond is answered at once."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Any

import pytest
import trio

from spegel_consul.http.server.connection_limits import ConnectionLimits
from spegel_consul.oci.errors import BlobUnknown
from spegel_consul.oci.path import parse_content_path
from spegel_consul.registry.mirror.lookup_limit import MOST, MOST_EACH, LookupLimit
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings

from ..image import BLOB_PATH, LAYER

OTHER, THIRD = "127.0.0.2", "127.0.0.3"
"""Of loopback, but not the address that is called: as clients on other machines."""


def miss(number: int) -> str:
    return f"/v2/library/app/blobs/sha256:{number:064x}?ns=docker.io"


async def ask(node: Any, source: str, path: str, wanted: str | None = None) -> trio.SocketStream:
    sock = trio.socket.socket(socket.AF_INET)
    await sock.bind((source, 0))
    await sock.connect(node.address)
    stream = trio.SocketStream(sock)
    field = f"Range: {wanted}\r\n" if wanted is not None else ""
    await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: x\r\n{field}\r\n".encode())
    return stream


async def status(stream: trio.SocketStream) -> bytes:
    return bytes(await stream.receive_some())[9:12]


@pytest.mark.parametrize("wanted", [None, "bytes=5-", "bytes=0-1,5-6"], ids=["all", "a range", "ranges"])
async def test_what_is_beyond_is_404_at_once(start_node: Any, wanted: str | None) -> None:
    node = await start_node(settings=MirrorSettings(resolve_timeout=300))
    node.router.providers = [None]  # nobody ever answers
    with trio.fail_after(60):
        waiting = [await ask(node, OTHER, miss(number), wanted) for number in range(MOST_EACH)]
        while node.mirror.lookups.in_flight < MOST_EACH:
            await trio.sleep(0.01)
        beyond = [await ask(node, OTHER, miss(1000 + number), wanted) for number in range(20)]
        assert {await status(each) for each in beyond} == {b"404"}
        assert node.mirror.lookups.in_flight == MOST_EACH
        assert len(node.router.asked) == MOST_EACH, "the ring has heard nothing of the others"
        # another address has its own share, and the node's own runtime has no limit
        waiting += [await ask(node, THIRD, miss(2000))]
        waiting += [await ask(node, "127.0.0.1", miss(3000 + number)) for number in range(MOST_EACH + 5)]
        while len(node.router.asked) < 2 * MOST_EACH + 6:
            await trio.sleep(0.01)
        assert node.mirror.lookups.in_flight == MOST_EACH + 1
        for each in [*waiting, *beyond]:
            await each.aclose()
        if node.fast_path is None:  # the application sees at once that a client has left, the fast path when it sends
            while node.mirror.lookups.in_flight:
                await trio.sleep(0.01)


async def test_many_requests_on_one_connection_are_one_after_the_other(start_node: Any) -> None:
    node = await start_node(settings=MirrorSettings(resolve_timeout=0.01))
    node.router.providers = [None]
    most = 0
    asked = b"".join(f"GET {miss(number)} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for number in range(MOST_EACH + 20))
    with trio.fail_after(60):
        stream = await ask(node, OTHER, miss(9999))
        await stream.send_all(asked)
        answers = b""
        while answers.count(b"HTTP/1.1 404") < MOST_EACH + 21:
            most = max(most, node.mirror.lookups.in_flight)
            answers += await stream.receive_some()
        await stream.aclose()
    assert most <= 1
    assert len(node.router.asked) == MOST_EACH + 21


async def test_a_transfer_is_no_lookup(pair: Any) -> None:
    _, asker = pair
    counts = []
    sent = asker.mirror.traces

    def ended(_: Any) -> None:
        counts.append(asker.mirror.lookups.in_flight)

    sent.on_end = ended
    with trio.fail_after(30):
        stream = await ask(asker, OTHER, BLOB_PATH)
        got = b""
        while len(got.partition(b"\r\n\r\n")[2]) < len(LAYER):
            got += await stream.receive_some()
        while not counts:
            await trio.sleep(0.01)
        await stream.aclose()
    assert got.endswith(LAYER)
    assert counts == [0]


async def test_all_others_together_have_a_share() -> None:
    limit, path = LookupLimit(), miss(1).partition("?")
    request = parse_content_path(path[0], path[2])
    with ExitStack() as held:
        for number in range(MOST):
            held.enter_context(limit.one(f"10.0.{number // 8}.1", request))
        with pytest.raises(BlobUnknown, match="too many requests of 10.9.9.9"), limit.one("10.9.9.9", request):
            pass
        for _ in range(1000):
            held.enter_context(limit.one("", request))
    assert limit.in_flight == 0
    assert not limit._of


async def test_other_machines_take_turns_and_this_one_does_not(start_node: Any) -> None:
    limits = ConnectionLimits(1024)
    taken: list[str] = []
    take = limits.turns.take

    async def counted(address: str) -> None:
        taken.append(address)
        await take(address)

    limits.turns.take = counted  # type: ignore[method-assign]
    node = await start_node(limits=limits)
    with trio.fail_after(30):
        for source in ("127.0.0.1", OTHER):
            stream = await ask(node, source, miss(0))
            for number in range(30):
                await stream.send_all(f"GET {miss(number)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answers = b""
            while answers.count(b"HTTP/1.1 404") < 31:
                answers += await stream.receive_some()
            await stream.aclose()
    assert set(taken) == {OTHER}
    assert len(taken) >= 31, "one for the connection and one for each request"
