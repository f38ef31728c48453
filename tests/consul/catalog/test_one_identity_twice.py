"""Two sidecars with one data directory at one agent, as after a job with another registry port was started beside."""

from __future__ import annotations

import trio
import trio.testing

from spegel_consul.consul.api.client import AgentService
from spegel_consul.consul.catalog.registration import Changes, Registration, compare
from tests.consul.catalog.test_catalog import as_present, services, until
from tests.consul.fakeconsul import FakeConsul

HERE, THERE = services(), services(registry_port=5050, router_port=5051, metrics_port=9091)


async def test_both_stay_registered_and_say_so(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        consul = FakeConsul(nursery)
        here, there = Registration(consul.client("n1"), HERE), Registration(consul.client("n1"), THERE)
        await nursery.start(here.run)
        await until(lambda: len(consul.services) == 3)
        async with trio.open_nursery() as second:
            await second.start(there.run)
            await until(lambda: here.problem and there.problem)
            settled = consul.calls["PUT agent/service"]
            await trio.sleep(600)
            assert consul.calls["PUT agent/service"] == settled
            assert set(consul.services) == {service.id for service in (*HERE, *THERE)}
            assert "registered as spegel:n1:5050 at 10.0.0.7:5050" in str(here.problem)
            assert "registered as spegel:n1 at 10.0.0.7:5000" in str(there.problem)
            assert "two sidecars with one identity" in str(here.problem)
            assert "--data-dir" in str(here.problem)
            second.cancel_scope.cancel()
        await until(lambda: here.problem is None)
        assert set(consul.services) == {service.id for service in HERE}
        nursery.cancel_scope.cancel()


async def test_the_former_registrations_of_a_sidecar_that_ended_are_no_problem(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        consul = FakeConsul(nursery)
        client = consul.client("n1")
        for service in THERE:
            await client.register_service(service.to_json())
        registration = Registration(client, HERE)
        await nursery.start(registration.run)
        await until(lambda: set(consul.services) == {service.id for service in HERE})
        await trio.sleep(100)
        assert registration.problem is None
        nursery.cancel_scope.cancel()


def test_an_id_that_only_this_process_can_have_is_removed_again() -> None:
    """Nomad registers, withdraws and registers again; and an agent's configuration names this node's port."""
    nomads = as_present(HERE[0], id="_nomad-task-7b1c-group-spegel-registry")
    ours, unknown = as_present(HERE[0]), as_present(HERE[1], id="spegel-router:unknown", meta={})
    present: dict[str, AgentService] = {each.id: each for each in (nomads, ours, unknown)}
    removed = {ours.id, unknown.id}
    changes = compare(HERE, present, alloc_id="7b1c", removed=removed)
    assert (set(changes.remove), changes.doubles) == (removed, ())


def test_only_what_returned_is_left() -> None:
    present = {service.id: as_present(service) for service in (*HERE, *THERE)}
    [registry, router, metrics] = [each.id for each in THERE]
    assert compare(HERE, present) == Changes(remove=(registry, router, metrics))
    changes = compare(HERE, present, removed={router, registry})
    assert changes.remove == (metrics,)
    assert [each.id for each in changes.doubles] == [registry, router]
