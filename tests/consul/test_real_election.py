"""Elections with a real agent."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from lab.process import HANG
from structlog.testing import capture_logs

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import ConsulTimeout
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.catalog.leader_service import LeaderService
from spegel_consul.consul.catalog.service_definitions import LEADER, ServiceDefinition, TtlCheck
from spegel_consul.consul.consul_lock import ConsulLock
from spegel_consul.election.acquisition import SPACING
from spegel_consul.election.candidate import Candidate
from spegel_consul.election.election_view import ElectionSettings, State
from spegel_consul.election.leader_record import FLAGS, LeaderRecord
from spegel_consul.observable import Observable
from tests.consul.asking import put_key, statuses
from tests.consul.realconsul import ConsulAgent

pytestmark = pytest.mark.real


class Group:
    """Candidates at one agent, each with a client of its own, that can be stopped one by one."""

    def __init__(self, nursery: trio.Nursery, stack: AsyncExitStack) -> None:
        self.candidates: list[Candidate] = []
        self.scopes: list[trio.CancelScope] = []
        self.obstacles: list[Observable[str | None]] = []
        self._nursery, self._stack = nursery, stack

    async def add(
        self,
        settings: ConsulSettings,
        election: ElectionSettings,
        service: ServiceDefinition | None = None,
        cluster_size: int = 0,
    ) -> Candidate:
        number = len(self.candidates)
        me = LeaderRecord(f"peer{number}", (f"/ip4/10.0.0.{number}/tcp/5001/p2p/peer{number}",), node=f"n{number}")
        client = await self._stack.enter_async_context(ConsulClient(settings))
        leader_service = LeaderService(client, service) if service is not None else None
        obstacle, scope = Observable[str | None](None), trio.CancelScope()
        lock = ConsulLock(client, election, leader_service)
        candidate = Candidate(lock, me, cluster_size=lambda: cluster_size, obstacle=obstacle)

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await candidate.run(task_status=task_status)

        await self._nursery.start(run)
        self.candidates.append(candidate)
        self.scopes.append(scope)
        self.obstacles.append(obstacle)
        return candidate

    def leaders(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate.view.state is State.LEADER]

    def agreed(self) -> bool:
        live = [c for c in self.candidates if c.view.state is not State.STOPPED]
        return (
            len(self.leaders()) == 1
            and len({(c.view.session, c.view.epoch) for c in live}) == 1
            and all(c.view.fresh for c in live)
        )

    def stop(self, candidate: Candidate) -> None:
        self.scopes[self.candidates.index(candidate)].cancel()


@asynccontextmanager
async def group(settings: ConsulSettings, count: int, election: ElectionSettings) -> AsyncIterator[Group]:
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        made = Group(nursery, stack)
        for _ in range(count):
            await made.add(settings, election)
        yield made
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> float:
    """Seconds until ``condition()`` holds."""
    began = trio.current_time()
    with trio.fail_after(HANG):
        while not condition():
            await trio.sleep(0.005)
    return trio.current_time() - began


@pytest.fixture
async def client(agent: ConsulAgent) -> AsyncIterator[ConsulClient]:
    async with ConsulClient(agent.settings()) as made:
        await agent.ready(made)
        yield made


async def test_one_of_three_leads_and_its_record_is_readable(agent: ConsulAgent, client: ConsulClient) -> None:
    async with group(agent.settings(), 3, ElectionSettings(key="test/three")) as g:
        await until(g.agreed)
        [leader] = g.leaders()
        text = agent.command("kv", "get", "test/three")
        record = json.loads(text)
        assert text.startswith('{\n  "schema": 1,\n  "state": "held",\n')
        assert record["peer_id"] == leader.me.peer_id
        assert record["session"] == leader.view.session
        detail = agent.command("kv", "get", "-detailed", "test/three")
        assert leader.view.session in detail
        assert str(FLAGS) in detail
        followers = [candidate for candidate in g.candidates if candidate is not leader]
        assert {follower.view.leader.identity for follower in followers} == {leader.me.identity}


async def test_hand_over_when_the_leader_is_cancelled(agent: ConsulAgent, client: ConsulClient) -> None:
    async with group(agent.settings(), 3, ElectionSettings(key="test/cancel", ttl=60, lock_delay=60)) as g:
        for _ in range(2):
            await until(g.agreed)
            [old] = g.leaders()
            g.stop(old)
            await until(lambda old=old: old.view.state is State.STOPPED)
            took = await until(g.leaders)
            print(f"hand-over {took:.3f} s")
            assert took < 30, "it waited for the lock-delay, or for the TTL"


async def test_hand_over_when_the_leader_must_not_lead(agent: ConsulAgent, client: ConsulClient) -> None:
    services = [ServiceDefinition(f"spegel-leader:{n}", LEADER, "127.0.0.1", 5001, (TtlCheck(20.0),)) for n in "01"]
    async with group(agent.settings(), 0, ElectionSettings()) as g:
        for service in services:
            await g.add(agent.settings(), ElectionSettings(key="test/obstacle", ttl=60, lock_delay=60), service)
        await until(g.agreed)
        [old] = g.leaders()
        obstacle = g.obstacles[g.candidates.index(old)]
        obstacle.set("its address is lost")
        took = await until(lambda: g.agreed() and g.leaders() != [old])
        print(f"hand-over {took:.3f} s")
        assert took < 30, "it waited for the lock-delay, or for the TTL"
        [new] = g.leaders()
        with trio.fail_after(HANG):
            while {m.id for m in (await client.health_service(LEADER))[1]} != {services[g.candidates.index(new)].id}:
                await trio.sleep(0.05)
        g.stop(new)
        await until(lambda: new.view.state is State.STOPPED and old.view.session is None)
        await trio.sleep(1)
        assert old.view.state is State.FOLLOWER
        assert json.loads((await client.kv_get("test/obstacle"))[1].value)["state"] == "vacant"
        obstacle.set(None)
        await until(lambda: g.leaders() == [old])


async def test_all_stopped_leaves_no_session_and_no_lock_delay(agent: ConsulAgent, client: ConsulClient) -> None:
    async with group(agent.settings(), 1, ElectionSettings(key="test/vacant")) as g:
        await until(g.leaders)
    _, entry = await client.kv_get("test/vacant")
    assert entry is not None
    assert entry.session is None
    assert json.loads(entry.value)["state"] == "vacant"
    session = await client.session_create("next", ttl=10, lock_delay=0)
    assert await client.kv_acquire("test/vacant", session, b"mine")
    await client.session_destroy(session)


async def test_recovers_when_an_operator_destroys_the_session(agent: ConsulAgent, client: ConsulClient) -> None:
    async with group(agent.settings(), 3, ElectionSettings(key="test/destroy", lock_delay=1)) as g:
        await until(g.agreed)
        session, began = g.leaders()[0].view.session, trio.current_time()
        await client.session_destroy(session)
        await until(lambda: g.agreed() and g.leaders()[0].view.session != session)
        took = trio.current_time() - began
        print(f"after destroy, lock-delay 1 s: {took:.3f} s")
        assert took > 0.9


async def test_recovers_from_a_deleted_key(agent: ConsulAgent, client: ConsulClient) -> None:
    async with group(agent.settings(), 2, ElectionSettings(key="test/delete", ttl=60, lock_delay=60)) as g:
        await until(g.agreed)
        epoch = g.leaders()[0].view.epoch
        agent.command("kv", "delete", "test/delete")
        took = await until(lambda: g.agreed() and g.leaders()[0].view.epoch != epoch)
        assert took < 30, "it waited for the lock-delay, or for the TTL"


@pytest.mark.parametrize(
    "value",
    [
        b"junk",
        b"\x00\xff\x1f" * 99,
        b'{"peer_id": "' + b"x" * ((512 << 10) - 15) + b'"}',  # the largest that Consul takes
        b'{"schema": 99, "state": "held", "leader": {"id": "x"}}',
        b"",
    ],
    ids=["junk", "binary", "512 KiB", "future schema", "empty"],
)
async def test_repairs_a_value_that_was_written_over(client: ConsulClient, agent: ConsulAgent, value: bytes) -> None:
    key = f"test/over/{len(value)}"
    async with group(agent.settings(), 2, ElectionSettings(key=key)) as g:
        await until(g.agreed)
        [leader] = g.leaders()
        session = leader.view.session
        assert await put_key(client, key, value)
        with trio.fail_after(HANG):
            while LeaderRecord.parse((await client.kv_get(key))[1].value) is None:
                await trio.sleep(0.02)
        await until(g.agreed)
        assert g.leaders() == [leader]
        assert leader.view.session == session


async def test_a_ttl_below_the_agents_minimum(agent: ConsulAgent, client: ConsulClient) -> None:
    with capture_logs() as logs:
        async with group(agent.settings(), 1, ElectionSettings(key="test/ttl", ttl=5)) as g:
            await until(g.leaders)
            found = json.loads(agent.get(f"/v1/session/info/{g.candidates[0].view.session}"))
            assert found[0]["TTL"] == "10000ms"
    [told] = [line for line in logs if line["event"] == "session TTL adjusted to the servers' limits"]
    assert (told["asked"], told["used"]) == (5, 10)


async def test_a_hundred_candidates_and_few_writes(tmp_path: Path) -> None:
    """However the lead ends: one node asks for the lock, and those whose turn comes until all know who has it."""
    with ConsulAgent(tmp_path, {"limits": {"http_max_conns_per_client": 1000}}) as agent:
        async with ConsulClient(agent.settings()) as client:
            await agent.ready(client)
            asked: list[float] = []
            async with group(agent.settings(), 0, ElectionSettings()) as g:
                for _ in range(100):
                    _count_acquires(await g.add(agent.settings(), ElectionSettings(), cluster_size=100), asked)
                await until(g.agreed)
                for end in ("stopped", "destroyed", "stopped"):
                    asked.clear()
                    [old] = g.leaders()
                    session = old.view.session
                    assert session is not None
                    if end == "stopped":
                        g.stop(old)
                    else:
                        await client.session_destroy(session)
                    await until(lambda session=session: g.agreed() and g.leaders()[0].view.session != session)
                    took = trio.current_time() - asked[0]
                    print(f"{end}: {len(asked)} acquire writes in {took:.2f} s")
                    assert len(asked) <= 4 + 2 * took / SPACING


def _count_acquires(candidate: Candidate, asked: list[float]) -> None:
    client = candidate._store._client
    acquire = client.kv_acquire

    async def counted(key: str, session: str, value: bytes, flags: int = 0) -> bool:
        asked.append(trio.current_time())
        return await acquire(key, session, value, flags)

    client.kv_acquire = counted


async def test_the_lock_ends_soon_after_its_process(agent: ConsulAgent, client: ConsulClient) -> None:
    """A killed or hanging process doesn't wait for its TTL: the check of its spegel-leader frees the lock."""
    service = ServiceDefinition("spegel-leader:old", LEADER, "127.0.0.1", 5001, (TtlCheck(3.0),))
    async with group(agent.settings(), 0, ElectionSettings()) as g:
        election = ElectionSettings(key="test/bound", ttl=100)
        old = await g.add(agent.settings(), election, service)
        await until(g.leaders)
        assert [member.id for member in (await client.health_service(LEADER))[1]] == [service.id]
        other = await g.add(agent.settings(), election)
        await trio.sleep(4)
        assert old.view.state is State.LEADER
        async with hanging(old):
            took = await until(lambda: other.view.state is State.LEADER)
            print(f"after the process hung: {took:.3f} s")
            assert took < 50, "it waited for the TTL"
        await until(g.agreed)
        assert old.view.state is State.FOLLOWER
        with trio.fail_after(HANG):
            while await statuses(client, LEADER):
                await trio.sleep(0.05)


@asynccontextmanager
async def hanging(candidate: Candidate) -> AsyncIterator[None]:
    """None of its requests leaves."""
    http = candidate._store._client._http

    over = trio.Event()

    async def silent(*args: object, **more: object) -> None:
        await over.wait()
        raise ConsulTimeout("hung")

    http.request = silent
    yield
    over.set()
    del http.request


async def test_an_agent_restart_without_data(tmp_path: Path) -> None:
    with ConsulAgent(tmp_path) as agent:
        async with ConsulClient(agent.settings()) as client:
            await agent.ready(client)
            async with group(agent.settings(), 2, ElectionSettings()) as g:
                await until(g.agreed)
                [old] = g.leaders()
                agent.stop()
                await until(lambda: not any(candidate.view.fresh for candidate in g.candidates))
                assert not g.agreed()
                assert old.view.leader is old.me  # frozen, not forgotten
                assert old.problem is not None
                agent.start()
                await agent.ready(client)
                took = await until(g.agreed)
                print(f"agent restart: {took:.3f} s")
                assert all(candidate.problem is None for candidate in g.candidates)


async def test_no_threads_and_cancelled_queries_end_at_once(agent: ConsulAgent, client: ConsulClient) -> None:
    index, _ = await client.kv_get("test/nothing")
    before = threading.enumerate()
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(client.kv_get, "test/nothing", index, 60.0)
        await trio.sleep(0.3)
        assert threading.enumerate() == before
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 30, "they waited for the end of their 60 s"
    assert await client.status_leader()  # the pool still works


async def test_a_blocking_query_returns_on_change(agent: ConsulAgent, client: ConsulClient) -> None:
    await put_key(client, "test/watched", b"1")
    index, _ = await client.kv_get("test/watched")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put_key, client, "test/watched", "2 ✓".encode())
        with trio.fail_after(HANG):
            newer, entry = await client.kv_get("test/watched", index, 60)
    assert newer > index
    assert entry.value.decode() == "2 ✓"


async def test_a_silent_agent_times_out() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        settings = ConsulSettings(port=listener.getsockname()[1])
        async with ConsulClient(settings) as client:
            with pytest.raises(ConsulTimeout, match="no answer within 1 s"):
                await client.session_renew("some", within=1)
