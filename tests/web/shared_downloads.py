"""A node that follows a download, and that other nodes follow, without a network."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

import trio
from fakes.memory_store import MemoryStore

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.oci.path import ContentRequest, parse_content_path
from spegel_consul.peers import PeerInfo, Provider
from spegel_consul.registry.mirror.following.follows import ActiveGroup, Follows
from spegel_consul.registry.mirror.following.group_claim import Follow
from spegel_consul.ring.dht.claim_reports import ClaimReport, Verdict, What
from spegel_consul.store import Downloads
from spegel_consul.web.node_views import Node
from spegel_consul.zerocopy.growing_file import GrowingFile
from spegel_consul.zerocopy.position import Position

MIB = 1 << 20
LAYER, HERE = 64 * MIB - 8, 41 * MIB
CONFIG = b"{}\n"
LAYER_DIGEST = Digest.of(b"layer")
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"digest": Digest.of(CONFIG), "size": 0, "mediaType": "application/x"},
        "layers": [{"digest": LAYER_DIGEST, "size": LAYER, "mediaType": "application/x"}],
    }
).encode()
GROUP = Digest.of(MANIFEST)
CLAIM = Verdict(What.CLAIM)


class Downloading(MemoryStore):
    """The layer is being downloaded; ``here`` bytes of it are there."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.here = HERE
        self._path = path

    async def downloading(self, digest: Digest) -> GrowingFile | None:
        if digest != LAYER_DIGEST:
            return None
        os.truncate(self._path, self.here)
        return GrowingFile(os.open(self._path, os.O_RDONLY), LAYER)

    async def downloads(self) -> Downloads:
        return Downloads({LAYER_DIGEST: self.here})

    async def at_work(self) -> int | None:
        return self.here

    def is_idle(self) -> bool:
        return False


@dataclass
class Keeper:
    """A ring whose keeper says ``verdicts`` one after the other, and the last one again and again."""

    verdicts: list[Verdict]
    me: PeerInfo = field(default_factory=lambda: PeerInfo("me", ()))

    def is_vacant(self, group: str) -> bool:
        return False

    async def claim(self, group: str, report: ClaimReport) -> Verdict:
        return self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]


def request(repository: str = "library/app", registry: str = "docker.io") -> ContentRequest:
    return parse_content_path(f"/v2/{repository}/blobs/{LAYER_DIGEST}", f"ns={registry}")


def follow(peer: str, host: str) -> Verdict:
    return Verdict(What.FOLLOW, (Provider(peer, (host, 5000)),))


@asynccontextmanager
async def at_work(node: Node, *verdicts: Verdict) -> AsyncIterator[ActiveGroup]:
    """``node`` pulls an image of one layer of 64 MiB, and its keeper says ``verdicts``."""
    # with a name, because a file without one is a download that was given up
    with tempfile.NamedTemporaryFile() as layer:
        store = Downloading(layer.name)
        follows = Follows(Keeper(list(verdicts)), store, node.metrics, lambda provider: True)  # type: ignore[arg-type]
        follows.groups.learn(GROUP, MANIFEST)
        node.follows = follows
        async with trio.open_nursery() as nursery:
            await nursery.start(follows.run)
            active = await follows.begin(request())
            assert active is not None
            await active.verdict()
            yield active
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def bodies(node: Node, sends: Sequence[tuple[str, int]]) -> AsyncIterator[None]:
    """Peers follow ``node``: their ids, and the bytes that each was sent; -1 for one that waits for its first byte."""
    with ExitStack() as stack:
        for peer, sent in sends:
            send = stack.enter_context(node.followers.one(peer, request()))
            if sent < 0:
                continue
            file = GrowingFile(os.memfd_create("layer"), LAYER)
            stack.callback(file.close)
            os.ftruncate(file.fd, HERE)
            position = Position(LAYER)
            send.begin(file, 0, position, trio.current_time())
            position.took(sent)
            position.gave(sent)
        yield


def body(active: ActiveGroup) -> Follow:
    """A blob that this node begins to receive from its source."""
    source = active.claim.to_follow
    assert source is not None
    active.followed(source)
    return Follow(active.claim, source)
