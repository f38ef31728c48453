"""Parts of files over connections with TLS."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import trio

from spegel_consul.zerocopy.encrypted import send_encrypted as send_module
from spegel_consul.zerocopy.encrypted.secure_socket import SLICE
from spegel_consul.zerocopy.encrypted.send_encrypted import send_encrypted
from spegel_consul.zerocopy.send import Truncated
from tests.zerocopy.encrypted_ends import DATA, Contexts, contexts, file, limited, read, shaken

__all__ = ["contexts", "file"]


PARTS = [(0, len(DATA)), (0, 100), (5, 5), (17, SLICE + 17), (1, 1_000_000), (1_500_000, len(DATA))]


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize(("start", "stop"), PARTS)
async def test_a_part_of_a_file(
    contexts: Contexts, file: Any, start: int, stop: int, cold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cold:
        preadv = os.preadv

        def not_in_memory(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
            if flags & os.RWF_NOWAIT:
                raise BlockingIOError
            return preadv(fd, buffers, offset, flags)

        monkeypatch.setattr(os, "preadv", not_in_memory)
    monkeypatch.setattr(send_module, "_IN_A_ROW", 1 << 20)
    server, client = await shaken(contexts)
    counts: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_encrypted, server, b"head", file.fileno(), start, stop, counts.append)
        assert await read(client, 4 + stop - start) == b"head" + DATA[start:stop]
    assert counts == [stop - start]
    server.close()
    client.close()


@pytest.mark.parametrize("size", [2_000_000, 500_000])
async def test_a_file_that_is_shorter_than_it_was(contexts: Contexts, file: Any, size: int) -> None:
    os.truncate(file.name, size)
    server, client = await shaken(contexts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, client, len(DATA))
        with pytest.raises(Truncated):
            await send_encrypted(server, b"", file.fileno(), size - 1000, size + 1000, lambda _: None)
        with pytest.raises(Truncated):
            await send_encrypted(server, b"", file.fileno(), 0, len(DATA), lambda _: None)
        server.close()
    client.close()


async def test_a_slow_client_holds_no_thread(contexts: Contexts, file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = limited(monkeypatch)
    server, client = await shaken(contexts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_encrypted, server, b"", file.fileno(), 0, len(DATA), lambda _: None)
        with trio.fail_after(10):
            while not server.unsent or threads.borrowed_tokens:
                await trio.sleep(0.01)
        assert await read(client, len(DATA)) == DATA
    server.close()
    client.close()


async def test_a_disk_that_hangs_keeps_nobody_waiting(
    contexts: Contexts, file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    preadv = os.preadv

    def hanging(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if offset >= 1 << 20:
            hangs.set()
            goes_on.wait(60)
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", hanging)
    threads = limited(monkeypatch)
    server, client = await shaken(contexts)
    counts: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_encrypted, server, b"", file.fileno(), 0, len(DATA), counts.append)
        assert await read(client, 1 << 20) == DATA[: 1 << 20]
        with trio.fail_after(10):
            while not hangs.is_set():
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    assert counts == [1 << 20]
    server.close()
    goes_on.set()
    with trio.fail_after(10):
        while threads.borrowed_tokens:
            await trio.sleep(0.005)
    # what the thread read later was sent to nobody
    assert await read(client, 100) == b""
    client.close()


async def test_a_process_that_may_start_no_thread_sends_on_the_event_loop(
    contexts: Contexts, file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", refused)
    server, client = await shaken(contexts)
    counts: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_encrypted, server, b"head", file.fileno(), 0, len(DATA), counts.append)
        assert await read(client, 4 + len(DATA)) == b"head" + DATA
    assert counts == [len(DATA)]
    server.close()
    client.close()
