"""A router that lives long holds no more than one that lives for an hour, however many peers come and go."""

from __future__ import annotations

import gc
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from itertools import count, islice

import trio
from conformance.router import find
from sim.network import SimNetwork
from trio.testing import MockClock

from spegel_consul.peers import peer_id_from_text
from spegel_consul.ring.claiming import group_key
from spegel_consul.ring.dht.claim_reports import ClaimReport
from spegel_consul.ring.dht.keys import position
from spegel_consul.ring.router import KadRouter

MINUTE = 60.0
WAVES = 24
_CONTAINERS = (dict, list, set, frozenset, tuple, deque, OrderedDict)


def held(root: object) -> Counter[str]:
    """The number of objects of the product and of items in containers that ``root`` holds, by type."""
    found: Counter[str] = Counter()
    seen, left = {id(root)}, [root]
    while left:
        each = left.pop()
        is_container = isinstance(each, _CONTAINERS)
        if is_container:
            found[f"items in a {type(each).__name__}"] += len(each)  # type: ignore[arg-type]
        elif not type(each).__module__.startswith("spegel_consul."):
            continue
        found[type(each).__name__] += 1
        for other in gc.get_referents(each):
            if id(other) not in seen and not isinstance(other, type):
                seen.add(id(other))
                left.append(other)
    return found


def keeper(group: str, routers: Sequence[KadRouter]) -> KadRouter:
    target = int.from_bytes(group_key(group), "big")
    return min(routers, key=lambda router: position(peer_id_from_text(router.me.id or "")) ^ target)


async def test_peers_and_keys_that_come_and_go_leave_nothing(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    network = SimNetwork()

    async def node(port: int) -> tuple[KadRouter, trio.CancelScope]:
        router = KadRouter(network.host(None), registry=("10.0.0.1", port), rng=random.Random(port))
        scope = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await router.run(task_status=task_status)

        await nursery.start(run)
        return router, scope

    lasting, _ = await node(1)
    sizes: list[int] = []
    kinds: list[Counter[str]] = []
    for wave in range(WAVES):
        peer, scope = await node(10 + wave)
        assert await peer.join([lasting.me]) == 1
        await peer.announce([f"theirs {wave} {number}" for number in range(40)])
        await lasting.announce(
            [f"ours {wave} {number}" for number in range(40)], [f"ours {wave - 1} {number}" for number in range(40)]
        )
        await trio.sleep(MINUTE)
        for number in range(20):  # so many that the memory of answer times is full in the first third
            assert len(await find(lasting, f"theirs {wave} {number}")) == 1
        assert await find(lasting, f"nobody's {wave}") == []
        groups = (f"group {wave} {number}" for number in count())
        for group in islice((each for each in groups if keeper(each, (lasting, peer)) is peer), 2):
            await lasting.claim(group, ClaimReport(serves=True, working=True))
        scope.cancel()
        await trio.sleep(5 * MINUTE)
        kinds.append(held(lasting))
        sizes.append(kinds[-1].total())
    third = WAVES // 3
    early, late = max(sizes[third : 2 * third]), max(sizes[2 * third :])
    assert late <= early * 1.02, f"{sizes}: {(kinds[-1] - kinds[third]).most_common(8)}"
