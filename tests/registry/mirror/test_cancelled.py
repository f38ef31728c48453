"""A fetch that is cancelled, wherever it stands, leaves no connection behind that nobody will use."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from spegel_consul.http.peer_client import PeerClient
from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.oci.path import ContentRequest, Kind
from spegel_consul.oci.reference import Reference
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.mirror import Mirror
from spegel_consul.registry.mirror.mirror_peers import MirrorParts, MirrorSettings

from ..conftest import LIMITS, ListRouter, head
from ..image import DIGEST, LAYER, MANIFEST, MANIFEST_DIGEST

AT_ONCE = MirrorSettings(verify_first=0, hedge=0.0)
"""All peers are asked at once."""
BLOB = ContentRequest(Kind.BLOB, Reference("docker.io", "library/app", digest=DIGEST))
TAG = ContentRequest(Kind.MANIFEST, Reference("docker.io", "library/app", tag="v1"))
LARGE = head(200, len(LAYER), f"Docker-Content-Digest: {DIGEST}"), LAYER
SMALL = head(200, len(MANIFEST), f"Docker-Content-Digest: {MANIFEST_DIGEST}"), MANIFEST
PARTS = [
    (head(206, size - 5, f"Content-Range: bytes 5-{size - 1}/{size}"), LAYER[5:])
    for size in (len(LAYER) + 1, len(LAYER) + 2, len(LAYER))
]
SAYS_MORE = head(200, len(LAYER) + 1, f"Docker-Content-Digest: {DIGEST}"), LAYER


class CancelsAt(trio.abc.Instrument):
    """Cancels ``scope`` after a number of steps of all tasks; a step is what a task does between two checkpoints."""

    def __init__(self, scope: trio.CancelScope, steps: float) -> None:
        self._scope = scope
        self._left = steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


@pytest.mark.parametrize(
    ("request_", "method", "wanted", "scripts", "says"),
    [
        (BLOB, "GET", None, (LARGE, LARGE, LARGE), b"{}"),
        (BLOB, "GET", None, (SAYS_MORE, LARGE, LARGE), MANIFEST),
        (BLOB, "GET", "bytes=5-", PARTS, MANIFEST),
        (BLOB, "HEAD", None, (SAYS_MORE[:1], LARGE[:1], LARGE[:1]), MANIFEST),
        (TAG, "GET", None, (SMALL, SMALL, SMALL), b"{}"),
    ],
    ids=["blob", "disputed blob", "disputed part", "head", "manifest"],
)
async def test_cancelled_at_every_checkpoint(
    start_peer: Any,
    monkeypatch: pytest.MonkeyPatch,
    request_: ContentRequest,
    method: str,
    wanted: str | None,
    scripts: Any,
    says: bytes,
) -> None:
    peers = [await start_peer(*script, then="hang") for script in scripts]
    sockets: list[trio.socket.SocketType] = []
    make = trio.socket.socket

    def counted(*args: Any) -> trio.socket.SocketType:
        sockets.append(make(*args))
        return sockets[-1]

    monkeypatch.setattr(trio.socket, "socket", counted)
    steps, whole = 0, 0
    while whole < 3:  # the last ones were not cancelled any more
        steps += 1
        router, client = ListRouter(), PeerClient(LIMITS)
        router.providers = [Provider(f"peer{number}", peer.address) for number, peer in enumerate(peers)]
        mirror = Mirror(MirrorParts(router, client, Metrics(), AT_ONCE))  # type: ignore[arg-type]
        mirror.peers.sizes.learn(says)
        sockets.clear()
        opened = False
        with trio.CancelScope() as scope:
            cancels = CancelsAt(scope, steps)
            trio.lowlevel.add_instrument(cancels)
            with mirror.begin(request_, method) as trace:
                async with mirror.open(request_, method, wanted, trace):
                    opened = True
                    await trio.lowlevel.checkpoint()
        trio.lowlevel.remove_instrument(cancels)
        kept = {each.source for several in client._idle.values() for each in several}
        left = [sock for sock in sockets if sock.fileno() >= 0 and sock not in kept]
        assert not left, f"{len(left)} of {len(sockets)} connections are left after {steps} steps"
        client.close()
        assert opened or scope.cancelled_caught
        whole = 0 if scope.cancelled_caught else whole + 1
    assert steps > 10
