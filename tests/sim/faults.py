# What goes wrong in a run is planned before it begins, from the seed alone, so that a part of a plan can be run again:
# that is how the least that breaks an invariant is found.

"""Faults of a whole cluster: a plan of them, and how each is done."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from tests.sim.world import World


@dataclass(frozen=True)
class Fault:
    """``kind`` happens at ``at`` and for ``lasts`` seconds, to ``nodes`` where it does not concern all."""

    kind: str
    at: float
    lasts: float
    nodes: tuple[int, ...]

    def __str__(self) -> str:
        some = f", nodes {' '.join(map(str, self.nodes[:8]))}" if self.nodes else ""
        more = f" and {len(self.nodes) - 8} more" if len(self.nodes) > 8 else ""
        return f"{self.kind} at {self.at:.1f} s for {self.lasts:.1f} s{some}{more}"


def plan(rng: random.Random, count: int, began: float, window: float) -> list[Fault]:
    """Three to six faults within ``window`` seconds."""
    return [_fault(rng, count, began + rng.uniform(0, window)) for _ in range(rng.randint(3, 6))]


def _fault(rng: random.Random, count: int, at: float) -> Fault:
    kind = rng.choice(list(KINDS))
    share = rng.choice((0.02, 0.1, 0.3, 0.5))
    nodes = tuple(sorted(rng.sample(range(count), max(1, int(share * count)))))
    lasts = rng.choice((2.0, 8.0, 25.0, 45.0)) * rng.uniform(0.7, 1.3)
    whole = kind in (
        "loss",
        "slow",
        "quorum",
        "servers",
        "flapping",
        "leader killed",
        "leader stopped",
        "leader cut off",
    )
    if kind == "rolling restart":
        nodes = nodes[:60]
        lasts = 0.5 * len(nodes)
    return Fault(kind, at, lasts, () if whole else nodes)


async def _partition(world: World, fault: Fault) -> None:
    """The nodes see each other and nobody else, nor the servers."""
    mend = _cut(world, fault)
    for number in fault.nodes:
        world.nodes[number].agent.leave()
    await trio.sleep(fault.lasts)
    mend()
    for number in fault.nodes:
        world.nodes[number].agent.come_back()


async def _split(world: World, fault: Fault) -> None:
    """As a partition, but all see the servers."""
    mend = _cut(world, fault)
    await trio.sleep(fault.lasts)
    mend()


async def _one_way(world: World, fault: Fault) -> None:
    """What the nodes send to the others is lost, what the others send arrives."""
    inside = {world.nodes[number].address for number in fault.nodes}
    mend = world.network.cut(lambda a, b: a in inside and b not in inside)
    await trio.sleep(fault.lasts)
    mend()


def _cut(world: World, fault: Fault) -> Callable[[], None]:
    inside = {world.nodes[number].address for number in fault.nodes}
    return world.network.cut(lambda a, b: (a in inside) != (b in inside))


async def _alone(world: World, fault: Fault) -> None:
    """A machine without network, for each node."""
    inside = {world.nodes[number].address for number in fault.nodes}
    mend = world.network.cut(lambda a, b: a in inside or b in inside)
    for number in fault.nodes:
        world.nodes[number].agent.leave()
    await trio.sleep(fault.lasts)
    mend()
    for number in fault.nodes:
        world.nodes[number].agent.come_back()


async def _loss(world: World, fault: Fault) -> None:
    world.network.loss += 0.1
    await trio.sleep(fault.lasts)
    world.network.loss -= 0.1


async def _slow(world: World, fault: Fault) -> None:
    world.network.latency += 0.1
    await trio.sleep(fault.lasts)
    world.network.latency -= 0.1


async def _quorum(world: World, fault: Fault) -> None:
    world.consul.lose_quorum()
    await trio.sleep(fault.lasts)
    world.consul.new_leader()


async def _servers(world: World, fault: Fault) -> None:
    world.consul.new_leader()


def _agents(**values: object) -> Callable[[World, Fault], Awaitable[None]]:
    async def do(world: World, fault: Fault) -> None:
        before = {name: "" if name == "link" else False for name in values}
        for state in (values, before):
            for number in fault.nodes:
                for name, value in state.items():
                    setattr(world.nodes[number].agent, name, value)
            world.consul.wake()
            if state is values:
                await trio.sleep(fault.lasts)

    return do


async def _killed(world: World, fault: Fault) -> None:
    for number in fault.nodes:
        world.nodes[number].kill()
    await trio.sleep(fault.lasts)
    for number in fault.nodes:
        await world.start(number)


async def _reborn(world: World, fault: Fault) -> None:
    for number in fault.nodes:
        world.nodes[number].kill()
        world.nodes[number].forget_identity()
    await trio.sleep(fault.lasts)
    for number in fault.nodes:
        await world.start(number)


async def _lost(world: World, fault: Fault) -> None:
    """These never come back."""
    for number in fault.nodes[: len(world.nodes) // 10 + 1]:
        world.nodes[number].kill()


async def _rolling(world: World, fault: Fault) -> None:
    for number in fault.nodes:
        await world.nodes[number].stop()
        await trio.sleep(0.2)
        await world.start(number)


async def _hung(world: World, fault: Fault) -> None:
    """As with SIGSTOP, for its peers and its agent."""
    stopped = [world.nodes[number] for number in fault.nodes if world.nodes[number].running]
    hosts = [node.host for node in stopped]
    for node, host in zip(stopped, hosts, strict=True):
        host.hung, node.agent.link = True, "silent"
    world.consul.wake()
    await trio.sleep(fault.lasts)
    for node, host in zip(stopped, hosts, strict=True):
        host.hung, node.agent.link = False, ""
    world.consul.wake()


async def _leader(world: World, fault: Fault, *, kill: bool) -> None:
    for node in [node for node in world.nodes if node.leads]:
        if kill:
            node.kill()
        else:
            await node.stop()
        await trio.sleep(fault.lasts)
        await world.start(node.number)


async def _leader_cut_off(world: World, fault: Fault) -> None:
    leaders = tuple(node.number for node in world.nodes if node.leads)
    await _alone(world, replace(fault, nodes=leaders))


async def _flapping(world: World, fault: Fault) -> None:
    until = trio.current_time() + fault.lasts
    while trio.current_time() < until:
        world.consul.destroy_lock()
        await trio.sleep(5)


KINDS: dict[str, Callable[[World, Fault], Awaitable[None]]] = {
    "partition": _partition,
    "split": _split,
    "one way": _one_way,
    "no network": _alone,
    "loss": _loss,
    "slow": _slow,
    "quorum": _quorum,
    "servers": _servers,
    "filtered": _agents(filtered=True),
    "denied": _agents(denied=True),
    "refused": _agents(link="refused"),
    "silent": _agents(link="silent"),
    "killed": _killed,
    "reborn": _reborn,
    "lost": _lost,
    "rolling restart": _rolling,
    "hung": _hung,
    "leader killed": lambda world, fault: _leader(world, fault, kill=True),
    "leader stopped": lambda world, fault: _leader(world, fault, kill=False),
    "leader cut off": _leader_cut_off,
    "flapping": _flapping,
}
