"""The upstream registry of the cold-start demonstration: one image, a narrow link, and a count of the bytes sent.

It answers GET and HEAD of one image's manifests and blobs. All answers share the bandwidth of the link, as those of a
real registry do, so the demonstration lasts long enough to be looked at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import h11
import trio

from spegel_consul.dev.sample import IMAGE, manifest_of
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import DigestInvalid
from spegel_consul.oci.media import OCI_MANIFEST, OCTET_STREAM

_PIECE = 64 << 10


class Upstream:
    """Serves the image in ``layout`` with ``rate`` bytes a second in all. ``sent``: bytes of content."""

    def __init__(self, layout: Path, rate: float) -> None:
        self._layout = layout
        self._rate = rate
        self._free_at = 0.0
        self.sent = 0
        self.address = ""

    @asynccontextmanager
    async def serving(self, host: str) -> AsyncIterator[None]:
        """Serve on a free port of ``host``; :attr:`address` has it."""
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, self._connection, 0, host=host))
            self.address = f"{host}:{listener.socket.getsockname()[1]}"
            yield
            nursery.cancel_scope.cancel()

    async def _connection(self, stream: trio.SocketStream) -> None:
        http = h11.Connection(h11.SERVER)
        try:
            async with stream:
                while True:
                    event = http.next_event()
                    if event is h11.NEED_DATA:
                        http.receive_data(await stream.receive_some(_PIECE))
                    elif isinstance(event, h11.Request):
                        await self._answer(stream, http, event)
                        return
                    else:
                        return
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            return  # a node that left

    async def _answer(self, stream: trio.SocketStream, http: h11.Connection, request: h11.Request) -> None:
        content = self._find(request.target.decode("ascii", "replace").partition("?")[0])
        headers = [("Connection", "close"), ("Content-Length", str(len(content[0]) if content else 0))]
        if content is not None:
            headers += [("Content-Type", content[1]), ("Docker-Content-Digest", str(Digest.of(content[0])))]
        await stream.send_all(http.send(h11.Response(status_code=200 if content else 404, headers=headers)) or b"")
        if content is not None and request.method == b"GET":
            for start in range(0, len(content[0]), _PIECE):
                piece = content[0][start : start + _PIECE]
                await self._take_turn(len(piece))
                await stream.send_all(piece)
                self.sent += len(piece)

    async def _take_turn(self, count: int) -> None:
        """Wait until the link has sent so many bytes more."""
        self._free_at = max(self._free_at, trio.current_time()) + count / self._rate
        await trio.sleep_until(self._free_at)

    def _find(self, path: str) -> tuple[bytes, str] | None:
        """The content at a path of the API, and its media type."""
        name = path.rpartition("/")[2]
        try:
            digest = manifest_of(self._layout) if name == IMAGE.rpartition(":")[2] else Digest(name)
            body = (self._layout / "blobs" / digest.algorithm / digest.encoded).read_bytes()
        except (DigestInvalid, OSError):
            return None
        return body, OCI_MANIFEST if "/manifests/" in path else OCTET_STREAM
