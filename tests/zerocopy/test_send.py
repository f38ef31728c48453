"""Files to a socket: from the page cache on the loop, from the disk in a thread, and never more or less than asked."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from spegel_consul.zerocopy import send
from spegel_consul.zerocopy.pacing import Pace
from spegel_consul.zerocopy.send import STALL, FileAnswer, Truncated, send_file

SIZE = (9 << 20) + 12_345
DATA = bytes(range(251)) * (SIZE // 251 + 1)
DATA = DATA[:SIZE]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "content"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
async def link() -> AsyncIterator[tuple[trio.socket.SocketType, trio.socket.SocketType]]:
    sink, client = trio.socket.socketpair()
    with sink, client:
        yield sink, client


async def sent(
    link: tuple[trio.socket.SocketType, trio.socket.SocketType], fd: int, start: int, stop: int, *, piece: int = 1 << 18
) -> tuple[bytes, int]:
    """What the client gets, and how much was counted."""
    sink, client = link
    received, counted = bytearray(), []

    async def read() -> None:
        while data := await client.recv(piece):
            received.extend(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        try:
            await send_file(sink, b"head", fd, start, stop, counted.append)
        finally:
            sink.shutdown(socket.SHUT_WR)
    return bytes(received), sum(counted)


@pytest.mark.parametrize("resident", [True, False], ids=["in memory", "on disk"])
@pytest.mark.parametrize(("start", "stop"), [(0, SIZE), (1, SIZE - 1), (5 << 20, SIZE), (7, 7), (3, (1 << 20) + 4)])
async def test_what_is_asked_is_sent(
    file: int,
    link: tuple[trio.socket.SocketType, trio.socket.SocketType],
    monkeypatch: pytest.MonkeyPatch,
    resident: bool,
    start: int,
    stop: int,
) -> None:
    cold, original = [], send._send_cold

    def watched(*args: int) -> int:
        cold.append(args)
        return original(*args)

    monkeypatch.setattr(send, "_resident", lambda *_: resident)
    monkeypatch.setattr(send, "_send_cold", watched)
    received, counted = await sent(link, file, start, stop)
    assert received == b"head" + DATA[start:stop]
    assert counted == stop - start
    # once on disk, a file is taken for on disk to its end
    assert bool(cold) == (not resident and stop > start)
    if cold and start == 0:
        assert sum(count for *_, count in cold) >= SIZE


async def test_a_client_that_reads_slowly_gets_all_from_the_disk(
    file: int, link: tuple[trio.socket.SocketType, trio.socket.SocketType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "_resident", lambda *_: False)
    link[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    received, counted = await sent(link, file, 0, 2 << 20, piece=8000)
    assert received == b"head" + DATA[: 2 << 20]
    assert counted == 2 << 20


async def test_a_process_that_may_start_no_thread_sends_on_the_event_loop(
    file: int,
    link: tuple[trio.socket.SocketType, trio.socket.SocketType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refused(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    most, sendfile = [], os.sendfile

    def watched(out: int, fd: int, start: int, count: int) -> int:
        most.append(count)
        return sendfile(out, fd, start, count)

    monkeypatch.setattr(trio.to_thread, "run_sync", refused)
    monkeypatch.setattr(send, "_resident", lambda fd, start, stop: False)
    monkeypatch.setattr(os, "sendfile", watched)
    assert await sent(link, file, 1, SIZE) == (b"head" + DATA[1:], SIZE - 1)
    assert max(most) <= 256 << 10


def test_the_thread_waits_a_moment_for_a_client_and_then_leaves_that_to_the_loop(file: int) -> None:
    sink, client = socket.socketpair()
    with sink, client:
        sink.setblocking(False)
        moved = send._send_cold(sink.fileno(), file, 0, SIZE)
        assert 0 < moved < SIZE
        with pytest.raises(BlockingIOError):
            send._send_cold(sink.fileno(), file, moved, SIZE - moved)
        received = bytearray()
        while len(received) < moved:
            received += client.recv(1 << 20)
        assert received == DATA[:moved]


def test_the_thread_ends_at_the_end_of_a_file_that_is_too_short(file: int) -> None:
    sink, client = socket.socketpair()
    with sink, client:
        sink.setblocking(False)
        assert send._send_cold(sink.fileno(), file, SIZE - 10, 100) == 10
        assert send._send_cold(sink.fileno(), file, SIZE, 100) == 0


@pytest.mark.parametrize("resident", [True, False], ids=["in memory", "on disk"])
async def test_a_file_that_is_too_short_is_told(
    file: int,
    link: tuple[trio.socket.SocketType, trio.socket.SocketType],
    monkeypatch: pytest.MonkeyPatch,
    resident: bool,
) -> None:
    monkeypatch.setattr(send, "_resident", lambda *_: resident)
    received = []

    async def read() -> None:
        while data := await link[1].recv(1 << 18):
            received.append(data)

    counted: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        with pytest.raises(Truncated):
            await send_file(link[0], b"", file, 0, SIZE + 1, counted.append)
        link[0].shutdown(socket.SHUT_WR)
    assert b"".join(received) == DATA
    assert counted == [SIZE]


def test_what_was_just_written_is_in_memory_and_what_can_not_be_asked_is_not(file: int) -> None:
    assert send._resident(file, 0, SIZE)
    reading, writing = os.pipe()
    try:
        assert not send._resident(reading, 0, 10)
    finally:
        os.close(reading)
        os.close(writing)


def test_the_last_page_counts_too(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read-ahead brings runs of pages; the end of the stretch is asked for by itself."""
    asked: list[int] = []

    def preadv(fd: int, buffers: object, offset: int, flags: int) -> int:
        asked.append(offset)
        assert flags == os.RWF_NOWAIT
        if offset == SIZE - 1:
            raise BlockingIOError
        return 1

    monkeypatch.setattr(send.os, "preadv", preadv)
    assert not send._resident(file, SIZE - 600_000, SIZE)
    assert asked == [*range(SIZE - 600_000, SIZE, 256 << 10), SIZE - 1]


@pytest.mark.parametrize("resident", [True, False], ids=["in memory", "on disk"])
@pytest.mark.parametrize(("start", "stop"), [(0, 70_000), (3, 3 << 20)], ids=["fits the socket", "does not fit"])
async def test_a_file_answer_is_sent_now_or_later_and_counted_once(
    file: int,
    link: tuple[trio.socket.SocketType, trio.socket.SocketType],
    monkeypatch: pytest.MonkeyPatch,
    resident: bool,
    start: int,
    stop: int,
) -> None:
    monkeypatch.setattr(send, "_resident", lambda *_: resident)
    ended: list[int] = []
    answer, received = FileAnswer(b"head", os.dup(file), start, stop, ended.append), bytearray()
    assert answer.send_now(link[0]) == (resident and stop == 70_000)

    async def read() -> None:
        while data := await link[1].recv(1 << 18):
            received.extend(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await answer.send_rest(link[0])
        link[0].shutdown(socket.SHUT_WR)
    answer.close()
    assert bytes(received) == b"head" + DATA[start:stop]
    assert ended == [stop - start]


async def test_a_file_answer_that_is_too_short_is_told(
    file: int, link: tuple[trio.socket.SocketType, trio.socket.SocketType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "_resident", lambda *_: True)
    ended: list[int] = []
    answer = FileAnswer(b"", os.dup(file), SIZE, SIZE + 1, ended.append)
    with pytest.raises(Truncated):
        answer.send_now(link[0])
    answer.close()
    assert ended == [0]


async def test_a_head_and_data_arrive_in_order_whatever_the_socket_takes_at_once() -> None:
    head, data = bytes(range(250)) * 400, bytes(reversed(range(250))) * 4000
    for send_buffer in (2048, 1 << 20):
        near, far = trio.socket.socketpair()
        near.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, send_buffer)
        received = bytearray()
        with near, far:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send.send_both, near, head, memoryview(data))
                while len(received) < len(head) + len(data):
                    received += await far.recv(70_000)
        assert received == head + data


async def test_a_client_that_takes_nothing_for_a_minute_is_given_up(
    file: int, link: tuple[trio.socket.SocketType, trio.socket.SocketType], autojump_clock: MockClock
) -> None:
    sink, client = link
    counted: list[int] = []

    async def slow_client() -> None:
        await trio.sleep(STALL - 1)
        with suppress(BlockingIOError):
            while os.read(client.fileno(), 1 << 16):
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow_client)
        with pytest.raises(trio.TooSlowError):
            await send_file(sink, b"", file, 0, SIZE, counted.append)
    assert trio.current_time() == STALL - 1 + STALL, "the minute begins anew with each byte"
    assert 0 < sum(counted) < SIZE


@pytest.mark.parametrize("waits_for", ["a limit", "the disk"])
async def test_only_the_client_is_given_up(
    file: int,
    link: tuple[trio.socket.SocketType, trio.socket.SocketType],
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    waits_for: str,
) -> None:
    async def slow_disk(out: int, fd: int, start: int, count: int) -> int:
        await trio.sleep(STALL + 1)
        return os.sendfile(out, fd, start, count)

    class SlowPace(Pace):
        async def take(self, most: int) -> int:
            await trio.sleep(STALL + 1)
            return most

    if waits_for == "the disk":
        monkeypatch.setattr(send, "_resident", lambda *_: False)
        monkeypatch.setattr(send, "_cold", slow_disk)
    pace = SlowPace(1 << 20) if waits_for == "a limit" else None
    sink, client = link
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            while await client.recv(1 << 20):
                pass

        nursery.start_soon(read)
        await send_file(sink, b"", file, 0, SIZE, lambda _: None, pace)
        sink.shutdown(socket.SHUT_WR)
    assert trio.current_time() > 2 * STALL, "it waited more than once"


async def test_the_loop_sends_only_what_it_knows_to_be_in_memory(
    file: int, link: tuple[trio.socket.SocketType, trio.socket.SocketType], monkeypatch: pytest.MonkeyPatch
) -> None:
    known, original = [0], os.sendfile

    def in_memory(_: int, start: int, stop: int) -> bool:
        known.append(stop)
        return start < SIZE // 2

    def watched(out: int, fd: int, start: int, count: int) -> int:
        if threading.current_thread() is threading.main_thread():
            assert start + count <= known[-1], "these pages may have to be read from the disk"
        return original(out, fd, start, count)

    monkeypatch.setattr(send, "_resident", in_memory)
    monkeypatch.setattr(os, "sendfile", watched)
    # the socket takes a part of each call
    received, _ = await sent(link, file, 0, SIZE, piece=100_000)
    assert received == b"head" + DATA


@pytest.mark.parametrize("turn", [0.002, -1.0], ids=["while it waits for the socket", "while other tasks run"])
async def test_a_client_that_reads_is_not_given_up_after_a_pause_of_this_process(
    file: int,
    link: tuple[trio.socket.SocketType, trio.socket.SocketType],
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    turn: float,
) -> None:
    monkeypatch.setattr(send, "_TURN", turn)
    monkeypatch.setattr(send, "_ALONE", 1 << 16)  # so that a call may be sent whole
    sink, client = link
    received = bytearray()

    async def read() -> None:
        while True:
            await trio.lowlevel.wait_readable(client)
            with suppress(BlockingIOError):
                while data := os.read(client.fileno(), 1 << 16):
                    received.extend(data)
                else:
                    return
            autojump_clock.jump(STALL + 1)  # the loop did not run for all that time

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await send_file(sink, b"", file, 0, SIZE, lambda _: None)
        sink.shutdown(socket.SHUT_WR)
    assert received == DATA


@pytest.mark.parametrize("paced", [False, True])
async def test_pages_that_were_in_memory_are_tested_again_after_a_tenth_of_a_second(
    paced: bool,
    file: int,
    link: tuple[trio.socket.SocketType, trio.socket.SocketType],
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    sink, client = link
    tested: list[float] = []
    monkeypatch.setattr(send, "_resident", lambda fd, start, stop: tested.append(trio.current_time()) or True)
    original = os.sendfile

    def watched(*args: int) -> int:
        assert trio.current_time() - tested[-1] <= 0.1
        return original(*args)

    monkeypatch.setattr(os, "sendfile", watched)
    received = 0
    pace = Pace(4 << 20) if paced else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_file, sink, b"", file, 0, SIZE, lambda _: None, pace)
        while received < SIZE:
            await trio.sleep(0.0 if paced else 0.04)
            received += len(await client.recv(1 << 16))
    assert len(tested) > 10
