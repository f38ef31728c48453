# Another implementation in our ring: js-libp2p from npm, pinned, in Spegel's Kademlia.  It opens a stream for each
# message and answers FIND_NODE by the book; what it finds was encoded by us, and what we find by it.

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from conformance.router import eventually, find
from lab import parts

from spegel_consul.peers import PeerInfo
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.ring.router import KadRouter

SOURCES = Path(__file__).with_name("js")
pytestmark = pytest.mark.real


class JsNode:
    """``js/node.js``: one line in, one line out."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._buffer = b""

    async def start(self) -> None:
        with trio.fail_after(30):
            hello = await self._line()
        self.id: str = hello["id"]
        self.address: str = hello["addrs"][0].removesuffix(f"/p2p/{self.id}")

    async def ask(self, command: str, argument: str = "") -> Any:
        assert self._process.stdin is not None
        with trio.fail_after(15):
            await self._process.stdin.send_all(json.dumps({command: argument}).encode() + b"\n")
            answer = await self._line()
        assert "error" not in answer, answer["error"]
        return answer["answer"]

    async def _line(self) -> Any:
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            data = await self._process.stdout.receive_some()
            assert data, "the js node ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)


@pytest.fixture
async def js(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[JsNode]:
    for source in SOURCES.glob("*.js*"):
        shutil.copy(source, tmp_path)
    (tmp_path / "node_modules").symlink_to(parts.node_modules())
    process = await trio.lowlevel.open_process(
        [parts.system("node"), str(tmp_path / "node.js")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    node = JsNode(process)
    try:
        await node.start()
        yield node
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.aclose()
            await process.stdout.aclose()


async def test_what_either_side_provides_the_other_finds(js: JsNode, nursery: trio.Nursery) -> None:
    routers = []
    for number in range(3):
        host = Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0))
        router = KadRouter(host, registry=("127.0.0.1", 5000 + number))
        await nursery.start(router.run)
        routers.append(router)
    first, second, third = routers
    assert await second.join([first.me]) == 1
    assert await third.join([first.me]) == 1
    # the js node joins through one of ours, and one of ours through the js node
    assert await js.ask("dial", f"{first.me.addrs[0]}/p2p/{first.me.id}") is True
    assert await first.join([PeerInfo(None, (js.address,))]) == 1
    await eventually(lambda: all(js.id in {member.id for member in router.members()} for router in routers), within=15)
    with trio.fail_after(15):
        while len(await js.ask("table")) < 3:
            await trio.sleep(0.1)

    assert await js.ask("provide", "theirs") is True
    for router in routers:
        assert [provider.peer_id for provider in await find(router, "theirs")] == [js.id]
    # a js node knows nothing of our registries' addresses: the port is ours, as among Go nodes
    (provider,) = await find(third, "theirs")
    assert provider.registry == ("127.0.0.1", 5002)

    await third.announce(["ours"])
    await eventually(lambda: not third.unannounced)
    found = await js.ask("find", "ours")
    assert list(found) == [third.me.id]
    assert third.me.addrs[0] in found[third.me.id]
    assert await js.ask("find", "nobody has this") == {}
