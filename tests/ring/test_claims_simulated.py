# Keepers that are slow, dead, foreign or hostile, over the simulated network.

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
from conformance.router import eventually
from trio.testing import MockClock

from spegel_consul.multiaddrs import Address
from spegel_consul.peers import RingError, peer_id_to_text
from spegel_consul.ring.claiming import SKIPPED_FOR, group_key
from spegel_consul.ring.dht.claim_messages import WireVerdict, decode_claim, encode_claim, encode_verdict
from spegel_consul.ring.dht.claim_reports import ClaimReport, Report, Verdict, What, Why
from spegel_consul.ring.dht.keys import position
from spegel_consul.ring.dht.messages import Frames, WirePeer, frame
from spegel_consul.ring.dht.protocol_ids import CLAIMS, MEMBERS
from spegel_consul.ring.net.host import Stream
from spegel_consul.ring.restartable import ReplaceableRouter
from spegel_consul.ring.router import KadRouter
from tests.ring.sim_rig import SimRig, raw_id

WORK = ClaimReport(serves=True, working=True)


@pytest.fixture
async def rig(nursery: trio.Nursery) -> SimRig:
    return SimRig(nursery)


def by_nearness(routers: list[KadRouter], group: str) -> list[KadRouter]:
    """The keeper of ``group`` first."""
    target = int.from_bytes(group_key(group), "big")
    return sorted(routers, key=lambda router: position(raw_id(router)) ^ target)


def asked(router: KadRouter) -> int:
    """The number of groups that ``router`` keeps."""
    return len(router._claiming._claims)


def answers_with(rig: SimRig, keeper: KadRouter, answer: Callable[[bytes], bytes]) -> list[bytes]:
    """Let ``keeper`` answer each report by ``answer(group)``; returns the groups that it was asked about."""
    seen: list[bytes] = []

    async def serve(stream: Stream) -> None:
        frames = Frames()
        while data := await stream.receive():
            for body in frames.feed(data):
                group, _ = decode_claim(body)
                seen.append(group)
                stream.send(answer(group))

    rig.hosts[keeper.me.id]._handlers[CLAIMS] = serve
    return seen


async def test_all_ask_the_node_that_is_nearest(rig: SimRig, autojump_clock: MockClock) -> None:
    routers = await rig.ring(6)
    for group in map(str, range(12)):
        before = [asked(router) for router in by_nearness(routers, group)]
        verdicts = [await router.claim(group, WORK) for router in routers]
        assert [verdict.what for verdict in verdicts] == [What.CLAIM] + [What.FOLLOW] * 5
        assert [asked(router) for router in by_nearness(routers, group)] == [before[0] + 1, *before[1:]]


async def test_nodes_without_the_protocol_are_no_keepers(rig: SimRig, autojump_clock: MockClock) -> None:
    routers = await rig.ring(6)
    keeper, second, *others = by_nearness(routers, "group")
    rig.hosts[keeper.me.id].refuse(CLAIMS)
    verdicts = [await router.claim("group", WORK) for router in others]
    assert [verdict.what for verdict in verdicts] == [What.CLAIM] + [What.FOLLOW] * 3
    assert (asked(keeper), asked(second)) == (0, 1)
    costs = []
    for _ in range(3):  # because members may exchange their lists meanwhile
        start = rig.network.messages
        await others[0].claim("group", WORK)
        costs.append(rig.network.messages - start)
    assert min(costs) <= 2, "the refusal is remembered"


async def test_nodes_that_do_not_follow_keep_nothing(rig: SimRig, autojump_clock: MockClock) -> None:
    idle = [await rig.node(follow_chain=0) for _ in range(4)]
    others = [await rig.node() for _ in range(3)]
    for router in [*idle[1:], *others]:
        await router.join([idle[0].me])
    await eventually(lambda: all(len(router.members()) == 6 for router in [*idle, *others]), within=120)
    for group in map(str, range(12)):
        verdicts = [await router.claim(group, WORK) for router in others]
        assert [verdict.what for verdict in verdicts] == [What.CLAIM] + [What.FOLLOW] * 2
    assert [asked(router) for router in idle] == [0] * 4
    assert sum(asked(router) for router in others) == 12
    assert CLAIMS not in rig.hosts[idle[0].me.id]._handlers


async def test_foreign_nodes_are_not_even_asked(rig: SimRig, autojump_clock: MockClock) -> None:
    foreign = [await rig.node(speaks_members=False) for _ in range(4)]
    ours = [await rig.node() for _ in range(3)]
    for router in foreign:
        rig.hosts[router.me.id].refuse(CLAIMS)
    for router in [*foreign[1:], *ours]:
        await router.join([foreign[0].me])
    for router in ours[1:]:
        await router.join([ours[0].me])
    await eventually(lambda: all(len(router.members()) == 6 for router in ours), within=120)
    await trio.sleep(60)
    for group in map(str, range(10)):
        verdicts = [await router.claim(group, WORK) for router in ours]
        assert [verdict.what for verdict in verdicts] == [What.CLAIM] + [What.FOLLOW] * 2
    assert [asked(router) for router in foreign] == [0] * 4
    assert MEMBERS not in rig.hosts[foreign[0].me.id]._handlers


async def test_a_keeper_that_hangs_costs_two_seconds_once(rig: SimRig, autojump_clock: MockClock) -> None:
    routers = await rig.ring(6)
    keeper, second, *others = by_nearness(routers, "group")
    await others[0].claim("other group of the same pipelines", WORK)
    rig.hosts[keeper.me.id].hung = True
    start = trio.current_time()
    assert (await others[0].claim("group", WORK)).what is What.CLAIM
    assert 1.9 < trio.current_time() - start < 2.2
    start = trio.current_time()
    assert (await others[0].claim("group", WORK)).what is What.CLAIM
    assert trio.current_time() - start < 0.1
    assert asked(second) == 1
    assert (await others[1].claim("group", WORK)).sources[0].peer_id == others[0].me.id


async def test_the_second_nearest_is_asked_once_and_then_nobody(rig: SimRig, autojump_clock: MockClock) -> None:
    routers = await rig.ring(6)
    keeper, second, third, *others = by_nearness(routers, "group")
    for router in (keeper, second):
        answers_with(rig, router, lambda group: b"")
    start = trio.current_time()
    with pytest.raises(RingError, match="no keeper"):
        await others[0].claim("group", WORK)
    assert trio.current_time() - start < 4.2
    assert (await others[0].claim("group", WORK)).what is What.CLAIM
    assert asked(third) == 1
    await trio.sleep(SKIPPED_FOR + 1)
    with pytest.raises(RingError, match="no keeper"):
        await others[0].claim("group", WORK)


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff" * 40,
        frame(b"\xff" * 20),
        frame(b""),
        frame(bytes(5000)),
        encode_verdict(WireVerdict(group_key("another"), What.CLAIM)),
    ],
    ids=["no length", "no fields", "empty", "too long", "another group"],
)
async def test_a_keeper_that_answers_junk_is_passed_over(rig: SimRig, autojump_clock: MockClock, junk: bytes) -> None:
    routers = await rig.ring(5)
    keeper, second, *others = by_nearness(routers, "group")
    answers_with(rig, keeper, lambda group: junk)
    verdicts = [await router.claim("group", WORK) for router in others]
    assert [verdict.what for verdict in verdicts] == [What.CLAIM, What.FOLLOW, What.FOLLOW]
    assert asked(second) == 1
    await others[0].announce(["key"])
    await trio.sleep(1)
    assert len(others[0].members()) == 4, "it is a member as before"


async def test_sources_that_nobody_may_dial_are_dropped(rig: SimRig, autojump_clock: MockClock) -> None:
    routers = await rig.ring(5)
    keeper, _, asker, good, _ = by_nearness(routers, "group")

    def wire(router: KadRouter, *addresses: tuple[str, int]) -> WirePeer:
        return WirePeer(raw_id(router), tuple(Address(*each, http=True).encode() for each in addresses))

    bad = [
        wire(asker, ("10.9.9.9", 5000)),
        wire(good, ("127.0.0.1", 5000)),
        wire(good, rig.registry(asker)),
        wire(good, ("10.0.0.1", 0)),
    ]
    for source in bad:
        answers_with(rig, keeper, lambda group, it=source: encode_verdict(WireVerdict(group, What.FOLLOW, (it,))))
        with pytest.raises(RingError, match="can't be dialled"):
            verdict: Verdict = await ask_keeper(asker, keeper)
        fine = wire(good, rig.registry(good))
        both = (source, fine)
        answers_with(rig, keeper, lambda group, some=both: encode_verdict(WireVerdict(group, What.FOLLOW, some)))
        verdict = await ask_keeper(asker, keeper)
        assert [each.registry for each in verdict.sources] == [rig.registry(good)]


async def ask_keeper(asker: KadRouter, keeper: KadRouter) -> Verdict:
    """One question to ``keeper``, whose stream of earlier questions is not used."""
    asker._claiming._pipelines.clear()
    claiming = asker._claiming
    key = group_key("group")
    return claiming._verdict(key, await claiming._ask(raw_id(keeper), key, Report(serves=True)))


async def test_ten_thousand_claims_a_second_of_one_peer_harm_nobody(rig: SimRig, autojump_clock: MockClock) -> None:
    routers = await rig.ring(4)
    keeper, flooder, *others = by_nearness(routers, "group")
    stream = await rig.hosts[flooder.me.id].open(raw_id(keeper), (), CLAIMS)
    verdicts: list[int] = []

    async def flood() -> None:
        for second in range(3):
            for number in range(10_000):
                stream.send(encode_claim(group_key(f"{second} {number}"), Report(serves=True)))
            await trio.sleep(1)

    async def read() -> None:
        while data := await stream.receive():
            verdicts.append(len(data))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        nursery.start_soon(read)
        await trio.sleep(0.5)
        for number, router in enumerate(others):
            start = trio.current_time()
            verdict = await router.claim("group", WORK)
            assert verdict.what is (What.FOLLOW if number else What.CLAIM)
            assert trio.current_time() - start < 0.5
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert asked(keeper) <= 1 + 50 + 11 * 50
    assert verdicts, "it is answered"
    assert len(keeper.members()) == 3


async def test_junk_resets_the_stream_and_no_more(rig: SimRig, autojump_clock: MockClock) -> None:
    routers = await rig.ring(3)
    keeper, sender, other = by_nearness(routers, "group")
    for junk in [b"\xff" * 40, frame(b""), frame(b"\x0a\x03abc"), frame(bytes(5000))] * 20:
        stream = await rig.hosts[sender.me.id].open(raw_id(keeper), (), CLAIMS)
        stream.send(junk)
        with pytest.raises(RingError):
            await stream.receive()
    assert (await sender.claim("group", WORK)).what is What.CLAIM
    assert (await other.claim("group", WORK)).what is What.FOLLOW


async def test_eight_streams_of_one_peer(rig: SimRig, autojump_clock: MockClock) -> None:
    keeper, sender = await rig.ring(2)
    answered, held = 0, []
    for _ in range(12):
        try:
            stream = await rig.hosts[sender.me.id].open(raw_id(keeper), (), CLAIMS)
            stream.send(encode_claim(group_key("group"), Report(serves=True)))
            answered += bool(await stream.receive())
            held.append(stream)
        except RingError:
            continue
    assert answered == len(held) == 8


async def test_a_peer_without_an_address_is_nobody_s_source(rig: SimRig, autojump_clock: MockClock) -> None:
    keeper, other = await rig.ring(2)
    stranger = rig.network.host()
    async with trio.open_nursery() as nursery:
        await nursery.start(stranger.run)
        host = rig.hosts[keeper.me.id]
        stream = await stranger.open(raw_id(keeper), (host.address,), CLAIMS)
        stream.send(encode_claim(group_key("group"), Report(serves=True, working=True)))
        assert asked(keeper) == 0
        assert await stream.receive() == encode_verdict(WireVerdict(group_key("group"), What.ALONE))
        nursery.cancel_scope.cancel()
    assert (await other.claim("group", WORK)).what is What.CLAIM


async def test_a_new_keeper_keeps_the_sources_of_the_old_one(rig: SimRig, autojump_clock: MockClock) -> None:
    routers = await rig.ring(6)
    keeper, _, *others = by_nearness(routers, "group")
    for router in others:
        await router.claim("group", WORK)
    before = [await router.claim("group", WORK) for router in others]
    assert before[0].what is What.CLAIM
    await rig.kill(keeper)
    await eventually(lambda: all(len(router.members()) == 4 for router in others), within=60)
    for router, verdict in reversed(list(zip(others, before, strict=True))):
        after = await router.claim("group", WORK)
        assert (after.what, after.sources[:1]) == (verdict.what, verdict.sources[:1])


async def test_a_successor_takes_the_table_over(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    rig = SimRig(nursery)

    def make(predecessor: KadRouter | None) -> KadRouter:
        host = rig.network.host("10.0.0.99", 99)
        return KadRouter(host, registry=("10.0.0.99", 5000), successor_of=predecessor, rng=random.Random(1))

    router = ReplaceableRouter(make)
    await nursery.start(router.run)
    other = await rig.node()
    await router.join([other.me])
    group = next(str(n) for n in range(99) if by_nearness([router, other], str(n))[0] is router)  # type: ignore[list-item]
    assert (await other.claim(group, WORK)).what is What.CLAIM
    assert await router.restart([other.me])
    await trio.sleep(1)
    assert (await router.claim(group, WORK)).sources[0].peer_id == other.me.id
    lost = replace(WORK, lost=other.me.id or "", why=Why.CUT)
    assert (await router.claim(group, lost)).what is What.CLAIM
    assert peer_id_to_text(raw_id(other)) == other.me.id


async def test_a_successor_that_does_not_take_over_changes_nothing(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    rig = SimRig(nursery)
    keeper = await rig.node()
    KadRouter(rig.network.host("10.0.0.99", 99), registry=("10.0.0.99", 5000), successor_of=keeper)
    assert (await keeper.claim("group", WORK)).what is What.CLAIM
    assert keeper._claiming._claims.place_of == keeper._membership.place_of


async def test_keys_that_are_announced_during_a_restart_are_those_of_the_successor_too(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    rig, generations = SimRig(nursery), []

    def make(predecessor: KadRouter | None) -> KadRouter:
        host = rig.network.host("10.0.0.99", 99)
        generations.append(KadRouter(host, registry=("10.0.0.99", 5000), successor_of=predecessor))
        return generations[-1]

    router, keys = ReplaceableRouter(make), [f"key {number}" for number in range(1000)]
    await nursery.start(router.run)
    async with trio.open_nursery() as both:
        both.start_soon(router.announce, keys)
        await trio.lowlevel.checkpoint()
        both.start_soon(router.restart, [])
    old, new = generations
    assert len(new._announcements) == len(old._announcements) == len(keys)
