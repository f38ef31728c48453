"""Registration and the catalog watch in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from spegel_consul.consul.api.client import AgentService
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.consul.catalog.registration import NOMAD_GRACE, Changes, Registration, compare
from spegel_consul.consul.catalog.service_definitions import ServiceDefinition, spegel_services
from spegel_consul.disk.foreign_files import FileCalls
from tests.consul.fakeconsul import FakeConsul


def services(**changes: object) -> tuple[ServiceDefinition, ...]:
    given = {
        "node": "n1",
        "address": "10.0.0.7",
        "peer_id": "p",
        "router_addr": "/ip4/10.0.0.7/tcp/5001/p2p/p",
        "version": "1",
        "registry_port": 5000,
        "router_port": 5001,
        "metrics_port": 9090,
    }
    return spegel_services(**{**given, **changes}).always


async def until(condition: Callable[[], object], limit: float = 60) -> float:
    began = trio.current_time()
    with trio.fail_after(limit):
        while not condition():
            await trio.sleep(0.05)
    return trio.current_time() - began


@pytest.mark.parametrize(
    ("bound", "asked"),
    [("", "10.0.0.7"), ("0.0.0.0", "10.0.0.7"), ("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("::", "10.0.0.7")],
)
def test_the_agent_asks_for_life_where_the_metrics_port_is_bound(bound: str, asked: str) -> None:
    _, router, metrics = services(metrics_bound=bound)
    for service in (router, metrics):
        checks = [check["HTTP"] for check in service.to_json()["Checks"] if "HTTP" in check]
        assert checks == [f"http://{asked}:9090/livez"]


def test_three_services_and_their_checks() -> None:
    registry, router, metrics = services(scheme="https")
    assert [service.id for service in (registry, router, metrics)] == [
        "spegel:n1",
        "spegel-router:n1",
        "spegel-metrics:n1",
    ]
    assert registry.to_json() == {
        "ID": "spegel:n1",
        "Name": "spegel",
        "Address": "10.0.0.7",
        "Port": 5000,
        "Tags": [],
        "Meta": {
            "node": "n1",
            "peer_id": "p",
            "version": "1",
            "advertise": "10.0.0.7",
            "router": "/ip4/10.0.0.7/tcp/5001/p2p/p",
        },
        "Weights": {"Passing": 10, "Warning": 1},
        "Checks": [
            {
                "CheckID": "spegel:n1:http",
                "Name": "spegel answers HTTP",
                "Interval": "2000ms",
                "Timeout": "2000ms",
                "DeregisterCriticalServiceAfter": "5m",
                "HTTP": "https://10.0.0.7:5000/readyz",
                "TLSSkipVerify": True,
            }
        ],
    }
    listens, lives = router.to_json()["Checks"]
    assert (listens["TCP"], listens["Status"]) == ("10.0.0.7:5001", "passing")
    assert (lives["HTTP"], lives["Status"]) == ("http://10.0.0.7:9090/livez", "passing")
    assert {listens["CheckID"], lives["CheckID"]} == {router.check_id("tcp"), router.check_id("http")}
    assert metrics.to_json()["Checks"][0]["HTTP"] == "http://10.0.0.7:9090/livez"


def test_a_registry_that_asks_for_certificates_is_checked_by_its_port() -> None:
    registry, *_ = services(scheme="https", verifies_clients=True)
    [check] = registry.to_json()["Checks"]
    assert (check["TCP"], "HTTP" in check) == ("10.0.0.7:5000", False)


def test_ipv6_and_several_sidecars_at_one_agent() -> None:
    registry, router, _ = services(address="fd00::7", registry_port=30021)
    assert (registry.id, registry.address) == ("spegel:n1:30021", "fd00::7")
    assert registry.checks[0].url == "http://[fd00::7]:30021/readyz"
    assert router.checks[0].address == "[fd00::7]:5001"


def as_present(service: ServiceDefinition, **changes: object) -> AgentService:
    found = AgentService(
        service.id, service.name, service.address, service.port, (), service.meta, weights=service.weights
    )
    return replace(found, **changes)


def test_nothing_to_do_when_all_is_there() -> None:
    wanted = services()
    present = {service.id: as_present(service) for service in wanted}
    assert compare(wanted, present) == Changes()
    assert compare(wanted, present, register_all=True) == Changes(register=wanted)
    for changes in ({"port": 1}, {"meta": {}}, {"weights": (1, 1)}, {"tags": ("x",)}, {"address": "10.0.0.8"}):
        altered = {**present, "spegel:n1": as_present(wanted[0], **changes)}
        assert compare(wanted, altered) == Changes(register=wanted[:1])


def test_former_registrations_of_this_node_alone_are_removed() -> None:
    wanted = services()
    present = {
        found.id: found
        for found in (
            *(as_present(service) for service in wanted),
            as_present(wanted[0], id="spegel:former-name"),  # this peer under another name
            as_present(wanted[0], id="spegel:n1:30021", port=30021),  # this peer at another port
            as_present(wanted[1], id="spegel-router:unknown", meta={}),  # our own address and port
            as_present(wanted[0], id="spegel:n2", address="10.0.0.8", meta={"peer_id": "q"}),  # another sidecar
            as_present(wanted[0], id="_nomad-task-7b1c-spegel"),
            as_present(wanted[0], id="web", name="web"),
        )
    }
    assert set(compare(wanted, present).remove) == {"spegel:former-name", "spegel:n1:30021", "spegel-router:unknown"}


def test_nomads_registration_is_not_doubled() -> None:
    wanted = services()
    nomads = as_present(wanted[0], id="_nomad-task-7b1c-group-spegel-registry")
    present = {nomads.id: nomads}
    assert compare(wanted, present, alloc_id="7b1c") == Changes(register=wanted[1:], left=("spegel",))
    assert compare(wanted, present, alloc_id="8888").register == wanted
    # we were first: ours goes
    present["spegel:n1"] = as_present(wanted[0])
    assert compare(wanted, present, alloc_id="7b1c").remove == ("spegel:n1",)
    assert compare(wanted, present, external=True) == Changes(
        remove=("spegel:n1",), left=("spegel", "spegel-metrics", "spegel-router")
    )


async def test_nomad_is_waited_for_and_then_left_alone(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        consul = FakeConsul(nursery)
        client = consul.client("n1")
        registration = Registration(client, services(), alloc_id="7b1c")
        await nursery.start(registration.run)
        await trio.sleep(3)
        assert not consul.services
        for service in services():
            await client.register_service({**service.to_json(), "ID": f"_nomad-task-7b1c-{service.name}"})
        await trio.sleep(100)
        assert len(consul.services) == 3
        nursery.cancel_scope.cancel()
    assert len(consul.services) == 3  # and they stay: they are not ours


async def test_nomad_that_registers_nothing_and_later_does(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        consul = FakeConsul(nursery)
        client = consul.client("n1")
        registration = Registration(client, services(), alloc_id="7b1c")
        await nursery.start(registration.run)
        assert NOMAD_GRACE <= await until(lambda: len(consul.services) == 3) <= NOMAD_GRACE + 1
        for service in services():
            await client.register_service({**service.to_json(), "ID": f"_nomad-task-7b1c-{service.name}"})
        await until(lambda: len(consul.services) == 3, 15)
        assert all(service.startswith("_nomad") for service in consul.services)
        nursery.cancel_scope.cancel()


async def test_nomad_that_withdraws_is_about_to_stop_the_task(autojump_clock: trio.testing.MockClock) -> None:
    """No service returns within NOMAD_GRACE; after it they do, because another program may have removed them."""
    async with trio.open_nursery() as nursery:
        consul = FakeConsul(nursery)
        client = consul.client("n1")
        registration = Registration(client, services(), alloc_id="7b1c")
        await nursery.start(registration.run)
        nomads = [{**service.to_json(), "ID": f"_nomad-task-7b1c-{service.name}"} for service in services()]
        for body in nomads:
            await client.register_service(body)
        await trio.sleep(30)
        consul.forget_services()
        took = await until(lambda: len(consul.services) == 3, 30)
        assert NOMAD_GRACE <= took <= 14.4 + NOMAD_GRACE + 1
        for body in nomads:
            await client.register_service(body)
        await until(lambda: len(consul.services) == 3, 15)
        # and each time anew, also when only one vanishes
        await client.deregister_service(nomads[0]["ID"])
        assert await until(lambda: "spegel:n1" in consul.services, 30) >= NOMAD_GRACE
        nursery.cancel_scope.cancel()


async def test_registered_again_and_deregistered(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        consul = FakeConsul(nursery)
        registration = Registration(consul.client("n1"), services())
        async with trio.open_nursery() as running:
            await running.start(registration.run)
            await until(lambda: len(consul.services) == 3, 1)
            assert set(consul.services) == {"spegel:n1", "spegel-router:n1", "spegel-metrics:n1"}
            before = consul.calls["PUT agent/service"]
            await trio.sleep(100)
            assert consul.calls["PUT agent/service"] == before == 3
            consul.forget_services()
            assert await until(lambda: len(consul.services) == 3) <= 14.4
            consul.services["spegel:n1"]["Port"] = 1  # of another program, with our id
            assert await until(lambda: consul.services["spegel:n1"]["Port"] == 5000) <= 14.4
            assert consul.calls["PUT agent/service"] == 7
            running.cancel_scope.cancel()
        assert not consul.services
        nursery.cancel_scope.cancel()


async def test_registered_again_when_the_token_changes(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(_: FileCalls, call: Callable[[], None]) -> None:
        """A clock that jumps while all tasks wait overtakes a thread."""
        call()

    monkeypatch.setattr(FileCalls, "run", at_once)
    (tmp_path / "token").write_text("one")
    async with trio.open_nursery() as nursery:
        consul = FakeConsul(nursery)
        settings = ConsulSettings(token_file=str(tmp_path / "token"))
        await nursery.start(Registration(consul.client("n1", settings), services()).run)
        await until(lambda: len(consul.services) == 3)
        (tmp_path / "token").write_text("another")
        await until(lambda: consul.calls["PUT agent/service"] == 6)
        assert consul.tokens[-3:] == ["another"] * 3
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("fault", ["cut", "hang", "proxy404", "html", "denied", "no-leader"])
async def test_an_agent_that_is_away(autojump_clock: trio.testing.MockClock, fault: str) -> None:
    async with trio.open_nursery() as nursery:
        consul = FakeConsul(nursery)
        consul.links["n1"] = fault
        registration = Registration(consul.client("n1"), services())
        with capture_logs() as logs:
            await nursery.start(registration.run)
            await trio.sleep(300)
        assert [line["event"] for line in logs] == ["registration hindered"]
        assert registration.problem.startswith("registering services: ")
        consul.links.clear()
        await until(lambda: registration.problem is None, 13 + 13)  # a pause, or a request that hangs to its end
        assert len(consul.services) == 3
        nursery.cancel_scope.cancel()


async def test_deregistration_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        consul = FakeConsul(nursery)
        registration = Registration(consul.client("n1"), services())
        async with trio.open_nursery() as running:
            await running.start(registration.run)
            await until(lambda: len(consul.services) == 3, 1)
            consul.links["n1"] = "hang"
            began = trio.current_time()
            running.cancel_scope.cancel()
        assert trio.current_time() - began <= 3.1
        nursery.cancel_scope.cancel()


async def test_watch_follows_and_never_forgets_on_failure(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        consul = FakeConsul(nursery)
        watch = CatalogWatch(consul.client("n2"), "spegel-router")
        await nursery.start(watch.run)
        await until(lambda: watch.problem)
        assert "no right to read" in watch.problem
        client = consul.client("n1")
        [_, router, _] = services()
        await client.register_service(router.to_json())
        members = await watch.changed(())
        assert [(member.id, member.meta["peer_id"]) for member in members] == [("spegel-router:n1", "p")]
        assert watch.problem is None
        # the index moves, the list doesn't
        consul.write(b"")
        await trio.sleep(5)
        assert watch.members is members
        # an empty answer is no evidence
        consul.forget_services()
        await until(lambda: watch.problem)
        assert watch.members is members
        # nor is a failure
        consul.links["n2"] = "no-leader"
        await until(lambda: "No cluster leader" in watch.problem, 70)
        assert watch.members is members
        consul.links.clear()
        await client.register_service(router.to_json())
        await until(lambda: watch.problem is None, 20)
        nursery.cancel_scope.cancel()


async def test_watch_leaves_out_other_clusters(autojump_clock: trio.testing.MockClock) -> None:
    """Services of jobs, agents' configurations and older versions have no leader key, and may be of any cluster."""
    async with trio.open_nursery() as nursery:
        consul = FakeConsul(nursery)
        watch = CatalogWatch(consul.client("n1"), "spegel-router", "staging/leader")
        await nursery.start(watch.run)
        for name, leader_key in (("n2", "staging/leader"), ("n3", "prod/leader"), ("n4", ""), ("n5", None)):
            [_, router, _] = services(node=name, leader_key=leader_key)
            await consul.client(name).register_service(router.to_json())
        await until(lambda: len(watch.members) == 3)
        await trio.sleep(5)
        assert [member.id for member in watch.members] == [f"spegel-router:{name}" for name in ("n2", "n4", "n5")]
        # a list of others only is as an empty one
        consul.forget_services()
        [_, router, _] = services(node="n3", leader_key="prod/leader")
        await consul.client("n3").register_service(router.to_json())
        await until(lambda: watch.problem)
        assert "with this node's leader key" in str(watch.problem)
        assert len(watch.members) == 3
        nursery.cancel_scope.cancel()


async def test_watch_does_not_spin(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        consul = FakeConsul(nursery)
        await nursery.start(CatalogWatch(consul.client("n1"), "spegel-router").run)
        for _ in range(1000):
            consul.write(b"")
            await trio.sleep(0.01)
        assert consul.calls["GET health/service"] <= 22
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("leader_key", [None, "staging/leader"])
async def test_watches_of_a_large_cluster_ask_seldom(
    autojump_clock: trio.testing.MockClock, leader_key: str | None
) -> None:
    """Nor does a small cluster beside it, because an answer has all."""
    async with trio.open_nursery() as nursery:
        consul = FakeConsul(nursery)
        client = consul.client("n1")
        for number in range(200):
            [_, router, _] = services(node=f"n{number}", leader_key="prod/leader" if number else leader_key)
            await client.register_service(router.to_json())
        watch = CatalogWatch(client, "spegel-router", leader_key)
        await nursery.start(watch.run)
        await until(lambda: len(watch.members) == (200 if leader_key is None else 1), 1)
        asked = consul.calls["GET health/service"]
        for _ in range(120):
            consul.write(b"")
            await trio.sleep(1)
        assert 120 / 2.5 - 1 <= consul.calls["GET health/service"] - asked <= 120 / 1.5
        nursery.cancel_scope.cancel()
