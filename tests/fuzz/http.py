# The whole of a registry's port.  The same bytes go to a server with the fast path and to one without.  What comes back
# must be the same up to dates and be complete, and the application must not have logged a traceback.  The client says
# all at once and closes its direction, so whatever the bytes were the server has to close the other one.

"""Fuzzing what answers HTTP, both paths."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import structlog
import trio
from registry.conftest import FileStore, ListRouter

from spegel_consul.http.peer_client import PeerClient
from spegel_consul.http.server.listen import ListenAddress, listen
from spegel_consul.http.server.serve import serve
from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.registry.asgi_path import ContentApp
from spegel_consul.registry.content_cache import ByteCache
from spegel_consul.registry.fast_path import FastPath
from spegel_consul.registry.mirror.mirror import Mirror
from spegel_consul.registry.mirror.mirror_peers import MirrorParts
from spegel_consul.registry.plan import Planner
from spegel_consul.registry.registry_app import build_app

BLOB = b"fuzzed"  # by its digest in the corpus
_VARIES = re.compile(rb"(?i)\r\ndate: [^\r]*")
_BOUNDARY = re.compile(rb"(boundary=|--)[0-9a-f]{32}")


def both_paths(data: bytes) -> bool:
    """Answers of the two paths to the same bytes."""
    problems: list[str] = []

    def heed(_: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        if method in ("error", "exception", "critical") or "exc_info" in event:
            problems.append(f"{event}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[heed], cache_logger_on_first_use=False)
    try:
        answer = trio.run(_compare, data)
    finally:
        structlog.configure(**before)
    assert not problems, problems[0]
    return answer.startswith(b"HTTP/1.1 200 ")


async def _compare(data: bytes) -> bytes:
    short = long = None
    for patience in (0.2, 3.0):  # seconds; a busy machine may need the second
        with TemporaryDirectory() as directory:
            short = await _answers(data, Path(directory, "short"), patience, short=True)
            long = await _answers(data, Path(directory, "long"), patience, short=False)
        if short is not None and short == long:
            return short
    raise AssertionError(f"{short and short[:300]!r} != {long and long[:300]!r}; None: it was not closed")


async def _answers(data: bytes, directory: Path, patience: float, *, short: bool) -> bytes | None:
    """All that comes back; None if the server has not closed the connection after ``patience`` seconds."""
    store, metrics, client = FileStore(directory), Metrics(), PeerClient()
    store.add_content(BLOB)
    mirror = Mirror(MirrorParts(ListRouter(), client, metrics))  # type: ignore[arg-type]
    planner = Planner(store, ImageFilter())
    app = ContentApp(build_app(lambda: None), planner, store, mirror, metrics)  # type: ignore[arg-type]
    fast_path = FastPath(planner, store, mirror, ByteCache(1 << 20), metrics) if short else None
    sock = listen(ListenAddress("127.0.0.1", 0), "--registry-addr")
    stop, address = trio.Event(), sock.getsockname()
    received = b""
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
                await serve(app, sock, stop=stop.wait, fast_path=fast_path, drain_timeout=1, task_status=task_status)  # type: ignore[arg-type]

            await nursery.start(run)
            async with await trio.open_tcp_stream(*address) as stream:
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(data)
                    # behind everything comes one good request; a server that still listens answers it and closes
                    await stream.send_all(b"\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    await stream.send_eof()
                with trio.move_on_after(patience) as waiting, suppress(trio.BrokenResourceError):
                    while piece := await stream.receive_some(1 << 16):
                        received += piece
            stop.set()
    client.close()
    return None if waiting.cancelled_caught else _BOUNDARY.sub(rb"\1", _VARIES.sub(b"", received))
