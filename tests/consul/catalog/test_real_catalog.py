"""Registration at real agents, and the rights that it needs."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from lab.process import HANG

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import AccessDenied
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.consul.catalog.node_place import NodePlace
from spegel_consul.consul.catalog.registration import Registration
from spegel_consul.consul.catalog.service_definitions import (
    LEADER,
    METRICS,
    REGISTRY,
    ROUTER,
    ServiceDefinition,
    spegel_services,
)
from spegel_consul.consul.consul_lock import ConsulLock
from spegel_consul.election.candidate import Candidate
from spegel_consul.election.election_view import State
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.places import NOWHERE, Here, Place
from tests.consul.asking import put_key, statuses
from tests.consul.realconsul import ConsulAgent

pytestmark = pytest.mark.real

POLICIES = Path(__file__).parents[3] / "consul/policies"


class Node:
    """Something that answers the checks: /readyz with ``status``, /livez well, and TCP."""

    def __init__(self) -> None:
        self.status = 200
        self.ports: list[int] = []

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                serve = partial(trio.serve_tcp, self._answer, 0, host="127.0.0.1")
                [listener] = await nursery.start(serve)
                self.ports.append(listener.socket.getsockname()[1])
            task_status.started()

    async def _answer(self, stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):  # how the agent's TCP check hangs up
                if await stream.receive_some():
                    status = self.status if stream.socket.getsockname()[1] == self.ports[0] else 200
                    await stream.send_all(b"HTTP/1.1 %d x\r\nContent-Length: 0\r\n\r\n" % status)

    def services(self) -> tuple[ServiceDefinition, ...]:
        return services_at(self.ports)


def services_at(ports: Sequence[int], *, leader: bool = False) -> tuple[ServiceDefinition, ...]:
    registry, router, metrics = ports
    made = spegel_services(
        node="n1",
        address="127.0.0.1",
        peer_id="peer1",
        router_addr=f"/ip4/127.0.0.1/tcp/{router}/p2p/peer1",
        version="1.2.3",
        registry_port=registry,
        router_port=router,
        metrics_port=metrics,
        interval=0.2,
    )
    return (made.leader,) if leader else made.always


@asynccontextmanager
async def node() -> AsyncIterator[tuple[Node, trio.Nursery]]:
    async with trio.open_nursery() as nursery:
        made = Node()
        await nursery.start(made.run)
        yield made, nursery
        nursery.cancel_scope.cancel()


@pytest.fixture
async def client(agent: ConsulAgent) -> AsyncIterator[ConsulClient]:
    async with ConsulClient(agent.settings()) as made:
        await agent.ready(made)
        yield made


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(HANG):
        while not condition():
            await trio.sleep(0.01)


async def test_life_of_a_registration(client: ConsulClient) -> None:
    async with node() as (here, nursery):
        watch = CatalogWatch(client, REGISTRY, wait=5)
        await nursery.start(watch.run)
        scope = trio.CancelScope()

        async def register() -> None:
            with scope:
                await Registration(client, here.services()).run()

        nursery.start_soon(register)
        await until(lambda: watch.members)
        [member] = watch.members
        assert (member.address, member.port) == ("127.0.0.1", here.ports[0])
        assert member.id == f"spegel:n1:{here.ports[0]}"
        assert dict(member.meta) == {
            "node": "n1",
            "peer_id": "peer1",
            "version": "1.2.3",
            "advertise": "127.0.0.1",
            "router": f"/ip4/127.0.0.1/tcp/{here.ports[1]}/p2p/peer1",
        }
        assert set(await client.agent_services()) == {
            f"{name}:n1:{here.ports[0]}" for name in (REGISTRY, ROUTER, METRICS)
        }
        here.status = 503
        began = trio.current_time()
        with trio.fail_after(HANG):
            while (await client.health_service(REGISTRY))[1]:
                await trio.sleep(0.02)
        print(f"unhealthy after {trio.current_time() - began:.2f} s at an interval of 0.2 s")
        [found] = await statuses(client, REGISTRY)
        assert "critical" in found
        assert len((await client.health_service(ROUTER))[1]) == 1  # each name has its own check
        here.status = 200
        scope.cancel()
        with trio.fail_after(HANG):
            while await client.agent_services():
                await trio.sleep(0.02)


async def test_a_forgetful_agent_gets_everything_again(tmp_path: Path) -> None:
    with ConsulAgent(tmp_path) as agent:
        async with ConsulClient(agent.settings()) as client, node() as (here, nursery):
            await agent.ready(client)
            registration = Registration(client, here.services(), poll=0.5)
            await nursery.start(registration.run)
            with trio.fail_after(HANG):
                while len(await client.agent_services()) < 3:
                    await trio.sleep(0.02)
            for service in here.services()[:2]:
                await client.deregister_service(service.id)
            with trio.fail_after(HANG):
                while len(await client.agent_services()) < 3:
                    await trio.sleep(0.02)
            agent.stop()
            agent.start()
            await agent.ready(client)
            began = trio.current_time()
            with trio.fail_after(HANG):
                while len(await client.agent_services()) < 3:
                    await trio.sleep(0.05)
            print(f"registered again after {trio.current_time() - began:.1f} s")


async def test_deregistering_the_unknown(client: ConsulClient) -> None:
    await client.deregister_service("spegel:nobody")
    assert (await client.health_service("spegel-nobody"))[1] == ()


async def test_the_shipped_policy_is_sufficient_and_no_token_is_not(tmp_path: Path) -> None:
    acl = {"enabled": True, "default_policy": "deny", "enable_token_persistence": True}
    with ConsulAgent(tmp_path, {"acl": acl}) as agent:
        root = agent.wait_for_acl()
        agent.command("acl", "policy", "create", "-name=spegel", f"-rules=@{POLICIES}/spegel.hcl", token=root)
        made = agent.command("acl", "token", "create", "-policy-name=spegel", "-format=json", token=root)
        token_file = tmp_path / "token"
        token_file.write_text("00000000-0000-0000-0000-000000000000\n")
        settings = agent.settings(CONSUL_HTTP_TOKEN_FILE=str(token_file))
        async with ConsulClient(settings) as client, node() as (here, nursery):
            with pytest.raises(AccessDenied, match="ACL not found"):
                await client.kv_get("spegel/leader")
            candidate = Candidate(ConsulLock(client), LeaderRecord("peer1", ("/ip4/127.0.0.1/tcp/1/p2p/peer1",)))
            registration = Registration(client, here.services())
            await nursery.start(candidate.run)
            await nursery.start(registration.run)
            await until(lambda: candidate.problem and registration.problem)
            # the token arrives, as from Nomad, in place of one that was revoked
            (tmp_path / "new").write_text(json.loads(made)["SecretID"])
            (tmp_path / "new").rename(token_file)
            await until(lambda: candidate.view.state is State.LEADER)
            await until(lambda: registration.problem is None)
            with trio.fail_after(HANG):
                while not (await client.health_service(REGISTRY))[1]:
                    await trio.sleep(0.05)
            await client.session_renew(candidate.view.session)
            with pytest.raises(AccessDenied, match="Permission denied"):
                await put_key(client, "somebody/else", b"")
        async with ConsulClient(agent.settings()) as nobody:
            with pytest.raises(AccessDenied):
                await nobody.kv_get("spegel/leader")
            assert (await nobody.health_service(REGISTRY))[1] == ()  # 200 and empty: why absence proves nothing


async def test_the_place_of_an_agent(tmp_path: Path) -> None:
    with ConsulAgent(tmp_path, {"node_meta": {"zone": "eu-1a", "rack": "r7"}}) as agent:
        async with ConsulClient(agent.settings()) as client, trio.open_nursery() as nursery:
            await agent.ready(client)
            here = Here()
            place = NodePlace(client, here, NOWHERE)
            await nursery.start(place.run)
            assert here.place == Place("dc1", "eu-1a", "r7")
            assert place.node == "n1"
            # the coordinate of a new agent takes a while, and so does an answer without one
            assert set(await client.coordinates()) <= {"n1"}
            nursery.cancel_scope.cancel()


WRITES = ("session", "renew", "acquire", "release", "destroy", "register", "pass", "deregister")


@pytest.mark.parametrize(
    ("policy", "denied", "needs"),
    [
        (
            "spegel",
            (),
            {
                "key": ["read", "acquire", "release"],
                "session_prefix": ["session", "renew", "destroy"],
                "service_prefix": ["register", "pass", "own services", "list", "deregister"],
                "node_prefix": ["list"],
                "agent_prefix": ["place"],
            },
        ),
        (
            "spegel-reader",
            WRITES,
            {
                "key": ["read"],
                "service_prefix": ["own services", "list"],
                "node_prefix": ["list"],
                "agent_prefix": ["place"],
            },
        ),
    ],
)
async def test_each_rule_of_a_policy_is_necessary(
    tmp_path: Path, policy: str, denied: Sequence[str], needs: dict[str, list[str]]
) -> None:
    text = (POLICIES / f"{policy}.hcl").read_text()
    rules = {block.split()[0]: block for block in re.findall(r"^\w+ .*?^}", text, re.MULTILINE | re.DOTALL)}
    assert set(rules) == set(needs)
    failing = {}
    with ConsulAgent(tmp_path, {"acl": {"enabled": True, "default_policy": "deny"}}) as agent:
        root = agent.wait_for_acl()
        async with ConsulClient(agent.settings(CONSUL_HTTP_TOKEN=root)) as admin:
            await agent.ready(admin)
            for left_out in ("nothing", *rules):
                name = left_out.replace("_", "-")
                kept = "\n".join(block for rule, block in rules.items() if rule != left_out)
                agent.command("acl", "policy", "create", f"-name={name}", f"-rules={kept}", token=root)
                made = agent.command("acl", "token", "create", f"-policy-name={name}", "-format=json", token=root)
                async with ConsulClient(agent.settings(CONSUL_HTTP_TOKEN=json.loads(made)["SecretID"])) as client:
                    failing[left_out] = await _what_fails(client, admin)
    assert failing.pop("nothing") == list(denied)
    assert {rule: [call for call in failed if call not in denied] for rule, failed in failing.items()} == needs


async def _what_fails(client: ConsulClient, admin: ConsulClient) -> list[str]:
    """Which of the sidecar's calls are denied, or answered as if there were nothing."""
    led = services_at((1, 2, 3), leader=True)[0]
    await admin.register_service(led.to_json())
    with trio.fail_after(HANG):
        while not await statuses(admin, LEADER):
            await trio.sleep(0.02)
    lock, spare = [await admin.session_create("test", ttl=10, lock_delay=0) for _ in range(2)]

    async def own_services() -> None:
        if not await client.agent_services():
            raise AccessDenied("empty")

    async def list_instances() -> None:
        if not await statuses(client, LEADER):
            raise AccessDenied("empty")

    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "read": partial(client.kv_get, "spegel/leader"),
        "session": partial(client.session_create, "test", ttl=10, lock_delay=0),
        "renew": partial(client.session_renew, lock),
        "acquire": partial(client.kv_acquire, "spegel/leader", lock, b"{}"),
        "release": partial(client.kv_release, "spegel/leader", lock, b"{}"),
        "destroy": partial(client.session_destroy, spare),
        "place": client.agent_self,
        "register": partial(client.register_service, led.to_json()),
        "pass": partial(client.check_pass, led.check_id("ttl")),
        "own services": own_services,
        "list": list_instances,
        "deregister": partial(client.deregister_service, led.id),
    }
    failed = []
    for what, call in calls.items():
        try:
            await call()
        except AccessDenied:
            failed.append(what)
    await admin.session_destroy(lock)
    return failed


async def test_a_service_that_nomad_registered_is_not_doubled(client: ConsulClient) -> None:
    """As Nomad does it: after the start of the task, under an id of its own, and at the same address and port."""
    async with node() as (here, nursery):
        scope = trio.CancelScope()

        async def register() -> None:
            with scope:
                await Registration(client, here.services(), alloc_id="7b1c", poll=0.5).run()

        nursery.start_soon(register)
        await trio.sleep(1)
        assert not await client.agent_services()
        nomads = []
        for service in here.services():
            nomads.append(f"_nomad-task-7b1c-group-spegel-{service.name}-{service.port}")
            await client.register_service({**service.to_json(), "ID": nomads[-1], "Checks": [], "Meta": {}})
        await trio.sleep(2)
        assert set(await client.agent_services()) == set(nomads)
        for service in here.services():
            assert len((await client.health_service(service.name))[1]) == 1
        scope.cancel()
        await trio.sleep(0.2)
        assert set(await client.agent_services()) == set(nomads)
        for each in nomads:
            await client.deregister_service(each)


async def test_services_of_a_former_configuration_are_removed(client: ConsulClient) -> None:
    async with node() as (here, nursery):
        now = here.services()
        before = [replace(service, id=f"{service.name}:old-name") for service in now]
        elsewhere = replace(now[0], id="spegel:other", address="127.0.0.9", meta={"peer_id": "other"})
        for service in (*before, elsewhere):
            await client.register_service(service.to_json())
        scope = trio.CancelScope()

        async def register() -> None:
            with scope:
                await Registration(client, now).run()

        nursery.start_soon(register)
        with trio.fail_after(HANG):
            while set(await client.agent_services()) != {elsewhere.id, *(service.id for service in now)}:
                await trio.sleep(0.02)
        scope.cancel()
        await client.deregister_service(elsewhere.id)
