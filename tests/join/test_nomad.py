"""The election on a Nomad variable in virtual time."""

from __future__ import annotations

import random

import httpx
import pytest
import structlog
import trio
import trio.testing

from spegel_consul.election.election_view import State
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.election.lock_store import NotPermitted
from spegel_consul.join.sources.nomad_api import NomadError
from spegel_consul.join.sources.nomad_lock import NomadLock, NomadLockLost, NomadVarBootstrap
from spegel_consul.observable import Observable
from tests.join.fakenomad import FakeNomad

PATH = "nomad/jobs/spegel/leader"


def record(name: str) -> LeaderRecord:
    return LeaderRecord(name, (f"/ip4/10.0.0.{len(name)}/tcp/5001/p2p/{name}",), node=name)


class Cluster:
    def __init__(self, nursery: trio.Nursery, nomad: FakeNomad) -> None:
        self._nursery = nursery
        self._nomad = nomad
        self.scopes: dict[str, trio.CancelScope] = {}
        self.obstacles: dict[str, Observable[str | None]] = {}

    async def start(self, name: str) -> NomadVarBootstrap:
        obstacle = self.obstacles.setdefault(name, Observable(None))
        rng = random.Random(name)
        bootstrap = NomadVarBootstrap(self._nomad.client(name), PATH, record(name), obstacle=obstacle, rng=rng)
        self.scopes[name] = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with self.scopes[name]:
                await bootstrap.run(task_status=task_status)

        await self._nursery.start(run)
        return bootstrap


@pytest.fixture
def nomad() -> FakeNomad:
    return FakeNomad()


@pytest.fixture
def cluster(nursery: trio.Nursery, nomad: FakeNomad) -> Cluster:
    return Cluster(nursery, nomad)


def agree(*bootstraps: NomadVarBootstrap) -> str | None:
    """Whom all of them name."""
    named = {peer.id for each in bootstraps for peer in each.peers()}
    return named.pop() if len(named) == 1 and all(each.peers() for each in bootstraps) else None


def leads(bootstrap: NomadVarBootstrap) -> bool:
    """Whether it believes that it holds the lock."""
    return bootstrap.candidate.view.state is State.LEADER


async def until(predicate: object, within: float) -> float:
    before = trio.current_time()
    with trio.fail_after(within):
        while not predicate():  # type: ignore[operator]
            await trio.sleep(0.05)
    return trio.current_time() - before


async def test_one_of_three_is_elected_and_stays(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster
) -> None:
    nodes = [await cluster.start(name) for name in ("a", "bb", "ccc")]
    await until(lambda: agree(*nodes), 5)
    assert sum(leads(node) for node in nodes) == 1
    first = agree(*nodes)
    assert nomad.variables[PATH]["Items"]["addrs"].startswith("/ip4/10.0.0.")
    await trio.sleep(600)
    assert agree(*nodes) == first == nomad.holder()
    assert all(node.problem is None for node in nodes)
    # ten minutes of two followers: a write each about every minute, not one for every renewal
    assert nomad.calls["lock-acquire"] < 3 + 2 * 600 / 25


async def test_a_holder_that_stops_hands_over_within_seconds(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster
) -> None:
    nodes = {name: await cluster.start(name) for name in ("a", "bb", "ccc")}
    await until(lambda: agree(*nodes.values()), 5)
    old = nomad.holder()
    cluster.scopes[old].cancel()
    del nodes[old]
    assert await until(lambda: agree(*nodes.values()) not in (None, old), 10) < 3


async def test_a_holder_that_must_not_lead_hands_over_within_seconds(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster
) -> None:
    nodes = {name: await cluster.start(name) for name in ("a", "bb")}
    await until(lambda: agree(*nodes.values()), 5)
    old = nomad.holder()
    [other] = set(nodes) - {old}
    cluster.obstacles[old].set("its address is lost")
    assert await until(lambda: leads(nodes[other]), 10) < 3
    assert not leads(nodes[old])
    cluster.scopes[other].cancel()
    await trio.sleep(300)
    assert nomad.holder() is None
    cluster.obstacles[old].set(None)
    assert await until(lambda: leads(nodes[old]), 10) < 3


async def test_a_holder_that_vanishes_is_replaced_after_its_ttl_and_the_lock_delay(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster
) -> None:
    nodes = {name: await cluster.start(name) for name in ("a", "bb", "ccc")}
    await until(lambda: agree(*nodes.values()), 5)
    old = nomad.holder()
    nomad.links[old] = "cut"
    leader = nodes.pop(old)
    took = await until(lambda: agree(*nodes.values()) not in (None, old), 200)
    assert 30 < took < 140
    assert not leads(leader)
    assert leader.peers()  # it still names a peer
    del nomad.links[old]
    await until(lambda: leader.problem is None and agree(*nodes.values(), leader), 60)


async def test_a_lock_that_was_taken_away_is_noticed(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster
) -> None:
    node = await cluster.start("a")
    await until(lambda: leads(node), 5)
    nomad.variables[PATH]["Lock"]["ID"] = "another"
    await until(lambda: not leads(node), 20)
    nomad.variables.clear()
    await until(lambda: leads(node), 100)


async def test_the_log_has_the_reason_of_a_lost_lead_once(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster
) -> None:
    node = await cluster.start("a")
    await until(lambda: leads(node), 5)
    with structlog.testing.capture_logs() as logs:
        nomad.variables[PATH]["Lock"]["ID"] = "another"
        await until(lambda: not leads(node), 20)
        nomad.variables.clear()
        await until(lambda: leads(node), 100)
        await trio.sleep(60)
    events = [entry["event"] for entry in logs if entry["log_level"] == "warning" or "unhindered" in entry["event"]]
    assert events == ["election hindered", "election unhindered"]
    (reason,) = [entry["problem"] for entry in logs if entry["log_level"] == "warning"]
    assert reason.startswith("renewing the session: ")
    assert "attempting to modify locked variable" in reason


async def test_a_short_outage_ends_no_lead(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster
) -> None:
    node = await cluster.start("a")
    await until(lambda: leads(node), 5)
    for fault in (500, 429, "hang", "cut"):
        nomad.links["a"] = fault
        await until(lambda: node.problem, 30)
        nomad.links.clear()
        await until(lambda: node.problem is None, 30)
        assert leads(node)
    assert nomad.calls["lock-acquire"] == 1


async def test_without_the_right_to_write_it_follows_and_names_the_missing_right(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster
) -> None:
    nomad.links["bb"] = "read-only"
    reader = await cluster.start("bb")
    await until(lambda: reader.problem, 5)
    assert "the token needs read and write on variable nomad/jobs/spegel/leader: see jobs/acl/" in reader.problem
    leader = await cluster.start("a")
    await until(lambda: agree(leader, reader) == "a", 30)


async def test_a_nomad_without_locks_is_never_written_to_and_the_way_without_them_is_named(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster
) -> None:
    nomad.has_locks = False
    nodes = [await cluster.start(name) for name in ("a", "bb")]
    await until(lambda: all(node.problem for node in nodes), 10)
    assert "has no locks on variables (1.7 has): use --bootstrap-kind=nomad-service" in nodes[0].problem
    await trio.sleep(600)
    assert not nomad.variables
    assert not any(leads(node) or node.peers() for node in nodes)
    assert nomad.calls["lock-renew"] < 2 * 600 / 9

    nomad.has_locks = True  # the servers were upgraded
    await until(lambda: agree(*nodes), 30)
    assert sum(leads(node) for node in nodes) == 1


async def test_a_follower_whose_attempts_fail_makes_few_of_them(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster
) -> None:
    leader = await cluster.start("a")
    await until(lambda: leads(leader), 5)
    nomad.links["bb"] = "writes fail"
    follower = await cluster.start("bb")
    before = nomad.calls["read"]
    await trio.sleep(600)
    assert agree(leader, follower) == "a"
    assert 1 <= nomad.calls["failed write"] <= 600 / 25
    assert nomad.calls["read"] - before < 600 / 2


async def test_who_wrote_the_variable_of_a_nomad_without_locks_is_no_leader(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster
) -> None:
    nomad.has_locks = False
    nomad.write(PATH, {"state": "held", "peer_id": "dead", "addrs": "/ip4/10.0.0.9/tcp/5001/p2p/dead"})
    node = await cluster.start("a")
    await until(lambda: node.problem, 100)
    await trio.sleep(600)
    assert "use --bootstrap-kind=nomad-service" in node.problem
    assert nomad.variables[PATH]["Items"]["peer_id"] == "dead"

    nomad.has_locks = True
    await until(lambda: leads(node), 200)
    assert node.problem is None


async def test_answers_without_an_index_are_not_asked_for_at_once(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = await cluster.start("a")
    await until(lambda: leads(leader), 5)
    observed = nomad._observed

    async def stripped(request: httpx.Request) -> httpx.Response:
        answer = await observed(request)
        answer.headers.pop("X-Nomad-Index", None)
        return answer

    monkeypatch.setattr(nomad, "_observed", stripped)
    await cluster.start("bb")
    before = nomad.calls["read"]
    await trio.sleep(100)
    assert nomad.calls["read"] - before < 2 * 100 / 0.4


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_of_the_token_says_nothing_of_locks(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, status: int
) -> None:
    nomad.has_locks = False
    lock = NomadLock(nomad.client("a"), PATH)
    nomad.links["a"] = status
    with pytest.raises(NotPermitted):
        await lock.acquire("s", record("a"))
    nomad.links.clear()
    with pytest.raises(NomadError, match="no locks"):
        await lock.acquire("s", record("a"))
    assert not nomad.variables


async def test_a_late_refusal_of_an_old_lock_leaves_the_new_one(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad
) -> None:
    me = record("a")
    lock = NomadLock(nomad.client("a"), PATH)
    first, _ = await lock.create_session(me, 15.0)
    assert await lock.acquire(first, me)
    second, _ = await lock.create_session(me, 15.0)
    nomad.variables.clear()  # the first lock has ended
    lock._lock, lock._locking = "old", first
    put = lock._put

    async def late(operation: str | None, given: dict[str, str], items: dict[str, str] | None = None) -> object:
        if given.get("ID") == "old":
            lock._lock = None
            assert await lock.acquire(second, me)
        return await put(operation, given, items)

    lock._put = late  # type: ignore[method-assign]
    with pytest.raises(NomadLockLost):
        await lock.renew(first, 5.0)
    await lock.renew(second, 5.0)
    assert nomad.calls["lock-renew"] >= 2


async def test_a_session_whose_lock_has_ended_is_not_renewed(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad
) -> None:
    me = record("a")
    lock = NomadLock(nomad.client("a"), PATH)
    session, _ = await lock.create_session(me, 15.0)
    await lock.renew(session, 5.0)  # a name alone: the servers are asked whether they answer
    assert nomad.calls["read"] == 1
    assert await lock.acquire(session, me)
    nomad.variables.clear()
    for _ in range(2):
        with pytest.raises(NomadLockLost):
            await lock.renew(session, 5.0)
    nomad.links["a"] = "cut"
    other, _ = await lock.create_session(me, 15.0)
    with pytest.raises(NomadError, match="refused"):
        await lock.renew(other, 5.0)


@pytest.mark.parametrize("fault", [500, 429, "cut"])
async def test_a_nomad_that_can_t_answer_is_asked_again_for_locks(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, fault: int | str
) -> None:
    nomad.has_locks = False
    lock = NomadLock(nomad.client("a"), PATH)
    nomad.links["a"] = fault
    with pytest.raises(NomadError):
        await lock.acquire("s", record("a"))
    nomad.links.clear()
    with pytest.raises(NomadError, match="no locks"):
        await lock.acquire("s", record("a"))
    assert not nomad.variables


async def test_without_the_right_to_write_a_missing_variable_is_asked_for_seldom(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster
) -> None:
    nomad.links["a"] = "read-only"
    await cluster.start("a")
    await trio.sleep(600)
    assert 10 <= nomad.calls["read"] <= 2 * 600 / 15


async def test_a_lock_whose_id_was_lost_with_the_answer_is_no_lead_and_ends(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster
) -> None:
    node = await cluster.start("a")
    nomad.losing = "lock-acquire"
    await until(lambda: nomad.holder() == "a", 5)
    nomad.losing = None
    before = trio.current_time()
    await until(lambda: leads(node), 200)
    assert trio.current_time() - before > 30
    await trio.sleep(100)
    assert leads(node)
    assert nomad.holder() == "a"


async def test_a_new_process_does_not_take_the_lock_of_its_former_one_for_its_own(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster
) -> None:
    first = await cluster.start("a")
    await until(lambda: leads(first), 5)
    nomad.links["a"] = "cut"  # killed: it releases nothing
    cluster.scopes["a"].cancel()
    await trio.sleep(1)
    nomad.links.clear()
    again = await cluster.start("a")
    await until(lambda: again.peers(), 5)
    assert not leads(again)
    assert await until(lambda: leads(again), 200) > 30


@pytest.mark.parametrize(
    "items", [{}, {"peer_id": ""}, {"peer_id": "x"}, {"peer_id": "x", "addrs": "junk"}, {"state": "?"}]
)
async def test_a_value_that_is_no_record(
    autojump_clock: trio.testing.MockClock, nomad: FakeNomad, cluster: Cluster, items: dict[str, str]
) -> None:
    nomad.write(PATH, items)
    node = await cluster.start("a")
    await until(lambda: leads(node), 120)
