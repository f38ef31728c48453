"""A file that grows goes out as it grows, by both outlets, and its end is found in time."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock

from spegel_consul.disk import threads
from spegel_consul.zerocopy.growing_file import GrowingFile
from spegel_consul.zerocopy.outlet import Outlet, PieceOutlet, SocketOutlet
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.send import Truncated
from spegel_consul.zerocopy.send_growing import CHAIN_STALL, STALL, send_growing
from spegel_consul.zerocopy.source import PeerError

MIB = 1 << 20
DATA = os.urandom(5 * MIB + 77)
T = TypeVar("T")


class Writer:
    """Appends to a file as a runtime does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("xb", buffering=0)
        self.file = GrowingFile(os.open(path, os.O_RDONLY), len(DATA))

    def grow_to(self, size: int, data: bytes = DATA) -> None:
        self._file.write(data[self._file.tell() : size])

    def truncate(self, size: int) -> None:
        self._file.truncate(size)
        self._file.seek(size)

    def close(self) -> None:
        self._file.close()
        self.file.close()


class Client:
    """Takes all that an outlet sends."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ours, self._theirs = trio.socket.socketpair()
        self.reading = trio.Event()
        self.reading.set()

    async def read(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        with self._theirs:
            while data := await self._theirs.recv(1 << 18):
                self.received += data
                await self.reading.wait()

    async def take(self, piece: bytes) -> None:
        self.received += piece
        await self.reading.wait()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    made = Writer(tmp_path / "data")
    yield made
    made.close()


@pytest.fixture
async def client(nursery: trio.Nursery) -> AsyncIterator[Client]:
    made = Client()
    await nursery.start(made.read)
    yield made
    made.reading.set()
    made.ours.close()


@pytest.fixture(params=["socket", "pieces"])
async def outlet(request: pytest.FixtureRequest, client: Client, monkeypatch: pytest.MonkeyPatch) -> Outlet:
    async def at_once(call: Callable[[], T], _: object) -> T:
        """A clock that jumps while all tasks wait overtakes a thread."""
        await trio.lowlevel.checkpoint()
        return call()

    monkeypatch.setattr(threads, "in_thread", at_once)
    return SocketOutlet(client.ours, b"") if request.param == "socket" else PieceOutlet(client.take)


async def arrived(client: Client, size: int) -> None:
    with trio.fail_after(5):
        while len(client.received) < size:
            await trio.sleep(0.01)
    assert len(client.received) == size


@pytest.mark.parametrize(("start", "stop"), [(0, len(DATA)), (1, len(DATA) - 1), (2 * MIB, 2 * MIB + 5), (7, 7)])
async def test_all_bytes_come_as_the_file_grows(
    autojump_clock: MockClock,
    writer: Writer,
    client: Client,
    outlet: Outlet,
    nursery: trio.Nursery,
    start: int,
    stop: int,
) -> None:
    position, counted = Position(stop - start), list[int]()
    nursery.start_soon(send_growing, outlet, writer.file, start, position, counted.append)
    for size in (0, 1, MIB, 2 * MIB, 2 * MIB + 3, 4 * MIB, len(DATA)):
        writer.grow_to(size)
        await arrived(client, max(min(size, stop) - start, 0))
        await trio.sleep(STALL - 1)
    assert client.received == DATA[start:stop]
    assert position.whole
    assert sum(counted) == stop - start


async def test_a_late_follower_gets_pieces(
    autojump_clock: MockClock, writer: Writer, client: Client, outlet: Outlet
) -> None:
    writer.grow_to(len(DATA))
    position, seen = Position(len(DATA)), list[int]()
    await send_growing(outlet, writer.file, 0, position, lambda _: seen.append(position.sent))
    await arrived(client, len(DATA))
    assert seen[-1] == len(DATA)
    assert len(seen) >= 3  # so its lag is known meanwhile


async def test_a_file_that_stands_still_is_given_up(
    autojump_clock: MockClock, writer: Writer, client: Client, outlet: Outlet
) -> None:
    writer.grow_to(MIB)
    began = trio.current_time()
    with pytest.raises(PeerError, match="did not grow for 7 s") as failed:
        await send_growing(outlet, writer.file, 0, Position(len(DATA)), lambda _: None)
    assert failed.value.hung
    assert STALL <= trio.current_time() - began < STALL + 1
    await arrived(client, MIB)


async def test_a_writer_in_a_chain_is_given_more_time(
    autojump_clock: MockClock, writer: Writer, client: Client, outlet: Outlet
) -> None:
    writer.grow_to(MIB)
    began = trio.current_time()
    ends = began + 2 * STALL
    with pytest.raises(PeerError, match="did not grow for 7 s"):
        await send_growing(
            outlet,
            writer.file,
            0,
            Position(len(DATA)),
            lambda _: None,
            in_chain=lambda: trio.current_time() < ends,
        )
    assert 3 * STALL <= trio.current_time() - began < 3 * STALL + 1, "the time counts anew when the chain ends"
    began = trio.current_time()
    with pytest.raises(PeerError, match="did not grow for 20 s"):
        await send_growing(outlet, writer.file, MIB, Position(MIB), lambda _: None, in_chain=lambda: True)
    assert CHAIN_STALL <= trio.current_time() - began < CHAIN_STALL + 1


async def test_what_is_there_is_sent_before_the_end(
    autojump_clock: MockClock, writer: Writer, client: Client, outlet: Outlet
) -> None:
    writer.grow_to(3 * MIB)
    writer.path.unlink()
    began = trio.current_time()
    with pytest.raises(PeerError, match=f"given up by its writer after {3 * MIB} bytes"):
        await send_growing(outlet, writer.file, 0, Position(len(DATA)), lambda _: None)
    assert trio.current_time() - began < 1
    await arrived(client, 3 * MIB)


async def test_a_file_that_is_whole_needs_no_name(
    autojump_clock: MockClock, writer: Writer, client: Client, outlet: Outlet
) -> None:
    writer.grow_to(len(DATA))
    writer.path.unlink()
    await send_growing(outlet, writer.file, 0, Position(len(DATA)), lambda _: None)
    await arrived(client, len(DATA))


async def test_never_more_than_promised(
    autojump_clock: MockClock, writer: Writer, client: Client, outlet: Outlet, nursery: trio.Nursery
) -> None:
    async def grow() -> None:
        await arrived(client, MIB)
        writer.grow_to(len(DATA) + 1, DATA + b"more")

    writer.grow_to(MIB)
    nursery.start_soon(grow)
    with pytest.raises(PeerError, match="has more than its") as failed:
        await send_growing(outlet, writer.file, 0, Position(len(DATA)), lambda _: None)
    assert failed.value.broken
    await arrived(client, MIB)


async def test_a_download_that_begins_anew(
    autojump_clock: MockClock, writer: Writer, client: Client, outlet: Outlet, nursery: trio.Nursery
) -> None:
    position = Position(len(DATA))
    writer.grow_to(3 * MIB)
    nursery.start_soon(send_growing, outlet, writer.file, 0, position, lambda _: None)
    await arrived(client, 3 * MIB)
    writer.truncate(0)
    await trio.sleep(1)
    writer.grow_to(MIB)
    await trio.sleep(1)
    assert len(client.received) == 3 * MIB
    writer.grow_to(len(DATA))
    await arrived(client, len(DATA))
    assert client.received == DATA


async def test_a_file_that_becomes_shorter_in_the_midst_of_a_piece(
    autojump_clock: MockClock, writer: Writer, client: Client, outlet: Outlet, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.grow_to(MIB)
    monkeypatch.setattr(writer.file, "size", lambda: 2 * MIB)
    position = Position(len(DATA))
    with pytest.raises(Truncated):
        await send_growing(outlet, writer.file, 0, position, lambda _: None)
    assert position.sent == MIB
    await arrived(client, MIB)


async def test_a_file_that_the_disk_lost(autojump_clock: MockClock, writer: Writer, outlet: Outlet) -> None:
    os.close(writer.file.fd)
    writer.file.fd = -1
    with pytest.raises(PeerError, match="can't be read"):
        await send_growing(outlet, writer.file, 0, Position(len(DATA)), lambda _: None)


async def test_a_client_that_leaves_while_nothing_comes(
    autojump_clock: MockClock, writer: Writer, outlet: Outlet
) -> None:
    def check() -> None:
        if trio.current_time() > began + 2:
            raise ConnectionResetError

    began = trio.current_time()
    with pytest.raises(ConnectionResetError):
        await send_growing(outlet, writer.file, 0, Position(len(DATA)), lambda _: None, check)
    assert trio.current_time() - began < 3


async def test_time_of_a_slow_client_is_not_the_files(
    autojump_clock: MockClock, writer: Writer, client: Client, outlet: Outlet, nursery: trio.Nursery
) -> None:
    position = Position(len(DATA))
    client.reading = trio.Event()
    writer.grow_to(4 * MIB)
    nursery.start_soon(send_growing, outlet, writer.file, 0, position, lambda _: None)
    await trio.sleep(STALL * 3)
    assert position.sent < 4 * MIB
    client.reading.set()
    await arrived(client, 4 * MIB)
    await trio.sleep(STALL - 1)
    writer.grow_to(len(DATA))
    await arrived(client, len(DATA))
