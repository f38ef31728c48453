"""What served a request is freed when the request has ended, and does not wait for the garbage collector.

Objects that refer to themselves stay in memory until a collection looks at them, which takes minutes on a quiet node.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from spegel_consul.http.server.connection import Connection, Link
from spegel_consul.http.server.hypercorn_protocol import Http11
from spegel_consul.http.server.idle_connections import IdleConnection
from spegel_consul.http.server.idle_timer import IdleTimer
from spegel_consul.oci.digest import Digest
from spegel_consul.registry.mirror.fetch import Fetch
from spegel_consul.registry.mirror.following.follows import ActiveGroup
from spegel_consul.registry.mirror.following.group_claim import GroupClaim
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.registry.mirror.providers.hedging import Race
from spegel_consul.ring.dht.claim_reports import ClaimReport, Verdict, What

from .image import BLOB_PATH, LAYER, MANIFEST_DIGEST, TAG_PATH, get

OF_CONNECTIONS = (Connection, Link, IdleConnection, IdleTimer, Http11)
OF_REQUESTS = (Fetch, Race, ActiveGroup, GroupClaim)


def alive() -> Counter[str]:
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, OF_CONNECTIONS + OF_REQUESTS))


@pytest.fixture
def before() -> Iterator[Counter[str]]:
    """What earlier tests of this process have left; nothing is collected after that."""
    gc.collect()
    gc.disable()
    yield alive()
    gc.enable()


async def left(before: Counter[str]) -> Counter[str]:
    """The number of new objects of each kind, when all that can end has ended."""
    found: Counter[str] = Counter()
    for _ in range(500):
        found = alive() - before
        if not found:
            break
        await trio.sleep(0.02)
    return found


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (BLOB_PATH, 200),
        (TAG_PATH, 200),
        (f"/v2/library/app/manifests/{MANIFEST_DIGEST}?ns=docker.io", 200),
        (f"/v2/library/app/blobs/{Digest.of(b'absent')}?ns=docker.io", 404),
        ("/v2/library/app/manifests/v2?ns=docker.io", 404),
    ],
)
async def test_requests_and_their_connections_are_freed(
    before: Counter[str], pair: Any, path: str, status: int
) -> None:
    holder, asker = pair
    holder.store.add_content(LAYER)
    for _ in range(3):
        assert (await get(asker, path, **{"user-agent": "containerd/2"})).status_code == status
    asker.mirror.peers.client.close()  # the connections between the two nodes are kept otherwise
    assert await left(before) == {}


async def test_the_work_on_a_group_is_freed(before: Counter[str], start_node: Any) -> None:
    node = await start_node(settings=MirrorSettings(follow=True))
    verdicts = iter([What.CLAIM, What.ALONE, What.ALONE])

    async def keeper(group: str, report: ClaimReport) -> Verdict:
        return Verdict(next(verdicts), again=0.1)

    node.router.keeper = keeper
    for _ in range(2):
        await get(node, f"/v2/library/app/blobs/{Digest.of(b'absent')}?ns=docker.io", **{"user-agent": "containerd/2"})
        await trio.sleep(0.6)
    assert len(node.router.reports) >= 2
    assert await left(before) == {}
