"""A registry that sends blobs as they grow, a keeper with a script, and a store with downloads."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.peers import Provider, peer_id_of_ed25519, peer_id_to_text
from spegel_consul.ring.dht.claim_reports import ClaimReport, Verdict, What
from spegel_consul.store import Downloads
from spegel_consul.zerocopy.growing_file import GrowingFile

from ...conftest import FileStore


@dataclass
class Asked:
    """One request to a source."""

    digest: str
    start: int | None
    follower: str
    left: bool = False
    """Whether the client closed the connection before the body was complete."""


@dataclass
class GrowingSource:
    """Sends ``content`` as far as ``shown`` bytes; ``dies``: closes all connections and answers none.

    ``complete``: has all of it, but sends ``shown`` bytes only;
    ``hangs``: sends nothing to new requests, not even interim answers.
    """

    number: int
    content: dict[Digest, bytes]
    address: tuple[str, int] = ("", 0)
    shown: int = 1 << 40
    dies: bool = False
    hangs: bool = False
    complete: bool = False
    hides: set[Digest] = field(default_factory=set)
    asked: list[Asked] = field(default_factory=list)

    @property
    def provider(self) -> Provider:
        return Provider(peer_id_to_text(peer_id_of_ed25519(self.number.to_bytes(32, "big"))), self.address)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = listeners[0].socket.getsockname()
        await trio.serve_listeners(self._connection, listeners, task_status=task_status)  # type: ignore[arg-type]

    async def _connection(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                while not self.dies and await self._request(stream):
                    pass
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def _request(self, stream: trio.SocketStream) -> bool:
        request = b""
        while b"\r\n\r\n" not in request:
            data = await stream.receive_some()
            if not data:
                return False
            request += data
        line, *fields = request.decode().split("\r\n")
        headers = dict(each.lower().split(": ", 1) for each in fields if each)
        digest = line.split("/")[-2].split("?")[0]
        wanted = headers["range"][6:].split("-") if "range" in headers else []
        start = int(wanted[0]) if wanted else None
        asked = Asked(digest, start, next((each[17:] for each in fields if each.startswith("x-spegel-follow")), ""))
        self.asked.append(asked)
        body = self.content.get(Digest(digest))
        if body is None or digest in self.hides or self.dies:
            await stream.send_all(b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n")
            return True
        async with trio.open_nursery() as nursery:

            async def until_left() -> None:
                try:
                    data = await stream.receive_some()
                except trio.BrokenResourceError:
                    data = b""
                asked.left = not data
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_left)
            await self._body(stream, body, start, int(wanted[1] or len(body)) + 1 if wanted else len(body))
            nursery.cancel_scope.cancel()
        return not asked.left

    async def _body(self, stream: trio.SocketStream, body: bytes, start: int | None, stop: int) -> None:
        at, stop = start or 0, min(stop, len(body))
        told = trio.current_time()
        while self.shown <= at or self.hangs:
            await trio.sleep(0.01)
            if trio.current_time() - told >= 1 and not self.hangs:
                told = trio.current_time()
                await stream.send_all(b"HTTP/1.1 103 X\r\n\r\n")
        length = f"content-length: {stop - at}\r\n"
        if not self.complete:
            length += "x-spegel-growing: true\r\n"
        head = "HTTP/1.1 200 X\r\n" if start is None else "HTTP/1.1 206 X\r\n"
        if start is not None:
            length += f"content-range: bytes {at}-{stop - 1}/{len(body)}\r\n"
        await stream.send_all(f"{head}{length}\r\n".encode())
        while at < stop:
            if self.dies:
                await stream.aclose()
                return
            piece = body[at : min(self.shown, at + 50_000, stop)]
            if piece:
                await stream.send_all(piece)
                at += len(piece)
            else:
                await trio.sleep(0.01)


Keeper = Callable[[str, ClaimReport], Awaitable[Verdict]]


class ScriptedKeeper:
    """Says ``verdict`` to each report, or what ``after_loss`` says from the report of a lost source on."""

    def __init__(self, verdict: Verdict, after_loss: Verdict | None = None) -> None:
        self.verdict = verdict
        self.after_loss = after_loss
        self.delay = 0.0

    async def __call__(self, group: str, report: ClaimReport) -> Verdict:
        await trio.sleep(self.delay)
        if report.lost and self.after_loss is not None:
            self.verdict, self.after_loss = self.after_loss, None
        return self.verdict


def follow(*sources: GrowingSource | Provider, again: float = 2.0) -> Verdict:
    named = tuple(each.provider if isinstance(each, GrowingSource) else each for each in sources)
    return Verdict(What.FOLLOW, named, again)


CLAIM, ALONE = Verdict(What.CLAIM), Verdict(What.ALONE)


class DownloadingStore(FileStore):
    """Content, and the downloads of a runtime."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._downloads: dict[Digest, tuple[Path, int]] = {}
        self.looks = 0

    def download(self, content: bytes, have: int = 0) -> Path:
        """Begin the download of ``content``, of which ``have`` bytes are there; append the rest to the path."""
        digest = Digest.of(content)
        path = self._directory / f"ingest-{digest.encoded}"
        path.write_bytes(content[:have])
        self._downloads[digest] = path, len(content)
        return path

    def commit(self, content: bytes) -> Path:
        """Have the file of ``content``, of which the index does not know yet."""
        path = self._directory / Digest.of(content).encoded
        path.write_bytes(content)
        return path

    async def peek(self, digest: Digest, most: int) -> bytes | None:
        self.looks += 1
        return await super().peek(digest, most)

    def abort(self, content: bytes) -> None:
        path, _ = self._downloads.pop(Digest.of(content))
        path.unlink()

    async def downloading(self, digest: Digest) -> GrowingFile | None:
        await trio.lowlevel.checkpoint()
        self.looks += 1
        if digest not in self._downloads:
            return None
        path, total = self._downloads[digest]
        return GrowingFile(os.open(path, os.O_RDONLY), total)

    async def downloads(self) -> Downloads:
        await trio.lowlevel.checkpoint()
        self.looks += 1
        return Downloads({digest: path.stat().st_size for digest, (path, _) in self._downloads.items()})

    async def at_work(self) -> int | None:
        await trio.lowlevel.checkpoint()
        sizes = [path.stat().st_size for path, _ in self._downloads.values()]
        return sum(sizes) if sizes else None

    def is_idle(self) -> bool:
        return not self._downloads
