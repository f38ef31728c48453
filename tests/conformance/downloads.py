# What every Store must do that sees its runtime's downloads.  A subclass of DownloadSuite gives a fixture `downloads`.

"""The conformance suite of ``Store.downloading`` and ``Store.at_work``."""

from __future__ import annotations

import os
import random
from typing import Protocol

import pytest
import trio
from lab.process import HANG

from spegel_consul.oci.digest import Digest
from spegel_consul.store import Downloads as AllDownloads
from spegel_consul.store import Store
from spegel_consul.zerocopy.growing_file import GrowingFile

MIB = 1 << 20
BODY = random.Random(17).randbytes(3 * MIB + 5)


class Download(Protocol):
    """A download of the runtime."""

    @property
    def digest(self) -> Digest: ...

    async def grow(self, size: int) -> None:
        """Have ``size`` bytes of it on the disk."""
        ...

    async def commit(self) -> None: ...

    async def abort(self) -> None: ...


class Downloads(Protocol):
    """A store, and the runtime that it looks at."""

    @property
    def store(self) -> Store: ...

    async def begin(self, body: bytes) -> Download: ...


async def opened(store: Store, digest: Digest) -> GrowingFile:
    """The download when the store has found it."""
    with trio.fail_after(HANG):
        while (file := await store.downloading(digest)) is None:
            await trio.sleep(0.02)
    return file


def content(file: GrowingFile) -> bytes:
    return os.pread(file.fd, 64 * MIB, 0)


class DownloadSuite:
    """Subclass it as Test… with a fixture ``downloads``."""

    async def test_without_a_download_there_is_nothing(self, downloads: Downloads) -> None:
        assert await downloads.store.downloading(Digest.of(b"absent")) is None
        assert await downloads.store.at_work() is None

    async def test_a_download_is_read_while_it_grows(self, downloads: Downloads) -> None:
        download = await downloads.begin(BODY)
        with await opened(downloads.store, download.digest) as file:
            assert (file.total, file.size(), file.complete, file.abandoned()) == (len(BODY), 0, False, False)
            for size in (1, MIB, 2 * MIB + 7, len(BODY)):
                await download.grow(size)
                assert content(file) == BODY[:size]
                assert file.complete == (size == len(BODY))
            assert not file.abandoned()

    async def test_a_file_that_no_look_has_seen_is_known_to_this_process_only(self, downloads: Downloads) -> None:
        download = await downloads.begin(BODY)
        assert await downloads.store.peek(download.digest, len(BODY)) is None, "it is not committed"
        await download.commit()
        assert await downloads.store.peek(download.digest, len(BODY)) == BODY
        assert await downloads.store.peek(download.digest, len(BODY) - 1) is None
        assert await downloads.store.peek(Digest.of(b"absent"), MIB) is None

    async def test_a_commit_under_an_open_file(self, downloads: Downloads) -> None:
        download = await downloads.begin(BODY)
        await download.grow(MIB)
        with await opened(downloads.store, download.digest) as file:
            await download.commit()
            assert file.complete
            assert not file.abandoned()
            assert content(file) == BODY
        assert await _ends(downloads.store)

    async def test_what_was_committed_a_moment_ago_is_found(self, downloads: Downloads) -> None:
        download = await downloads.begin(BODY)
        (await opened(downloads.store, download.digest)).close()
        await download.commit()
        with await opened(downloads.store, download.digest) as file:
            assert (file.total, file.complete, file.abandoned()) == (len(BODY), True, False)
            assert content(file) == BODY

    async def test_an_abort_under_an_open_file(self, downloads: Downloads) -> None:
        download = await downloads.begin(BODY)
        await download.grow(2 * MIB)
        with await opened(downloads.store, download.digest) as file:
            await download.abort()
            assert file.abandoned()
            assert not file.complete
            assert content(file) == BODY[: 2 * MIB]
        assert await _ends(downloads.store)
        assert await downloads.store.downloading(download.digest) is None

    async def test_a_download_goes_on_where_it_stood(self, downloads: Downloads) -> None:
        download = await downloads.begin(BODY)
        await download.grow(MIB)
        (await opened(downloads.store, download.digest)).close()
        await trio.sleep(0.2)
        with await opened(downloads.store, download.digest) as file:
            assert content(file) == BODY[:MIB]
            await download.grow(2 * MIB)
            assert content(file) == BODY[: 2 * MIB]

    async def test_progress_of_anything_is_seen(self, downloads: Downloads) -> None:
        first = await downloads.begin(BODY)
        await downloads.begin(BODY[::-1])
        assert await _becomes(downloads.store, 0)
        await first.grow(MIB)
        assert await _becomes(downloads.store, MIB)

    async def test_all_downloads_are_told_with_their_sizes(self, downloads: Downloads) -> None:
        assert await downloads.store.downloads() == AllDownloads()
        first, second = await downloads.begin(BODY), await downloads.begin(BODY[::-1])
        await first.grow(MIB)
        assert await _tells(downloads.store, AllDownloads({first.digest: MIB, second.digest: 0}))
        await first.commit()
        await second.abort()
        assert await _tells(downloads.store, AllDownloads({}, frozenset({first.digest, second.digest})))

    @pytest.mark.parametrize("size", [0, MIB])
    async def test_two_readers_have_files_of_their_own(self, downloads: Downloads, size: int) -> None:
        download = await downloads.begin(BODY)
        await download.grow(size)
        one, other = [await opened(downloads.store, download.digest) for _ in range(2)]
        one.close()
        with other:
            assert other.size() == size


async def _becomes(store: Store, wanted: int | None) -> bool:
    with trio.move_on_after(HANG):
        while await store.at_work() != wanted:
            await trio.sleep(0.02)
        return True
    return False


async def _tells(store: Store, wanted: AllDownloads) -> bool:
    with trio.move_on_after(HANG):
        while await store.downloads() != wanted:
            await trio.sleep(0.02)
        return True
    return False


async def _ends(store: Store) -> bool:
    return await _becomes(store, None)
