"""The registries of the catalog by address and port, and their peer ids."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.consul.catalog.catalog_registries import CatalogRegistries, registries
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.consul.catalog.service_definitions import REGISTRY, spegel_services

from ..fakeconsul import FakeConsul


def entry(address: str, port: int = 5000, **meta: str) -> HealthyService:
    return HealthyService(f"{address}:{port}", REGISTRY, "node", address, port, meta=meta)


def known(*entries: HealthyService) -> Mapping[tuple[str, int], frozenset[str]]:
    return registries(entries)


def test_an_entry_names_one_process_and_its_id() -> None:
    assert known(entry("10.0.0.7", peer_id="p")) == {("10.0.0.7", 5000): {"p"}}


def test_an_entry_without_an_id_names_a_process_all_the_same() -> None:
    """As those that a Nomad job registers."""
    assert known(entry("10.0.0.7", 31000)) == {("10.0.0.7", 31000): set()}
    assert known(entry("10.0.0.7", peer_id="")) == {("10.0.0.7", 5000): set()}


def test_if_one_entry_of_several_names_an_id_only_that_is_meant() -> None:
    several = entry("10.0.0.7"), entry("10.0.0.7", peer_id="p"), entry("10.0.0.7", peer_id="q")
    assert known(*several) == {("10.0.0.7", 5000): {"p", "q"}}


def test_the_address_of_the_other_family_has_the_same_port() -> None:
    assert known(entry("10.0.0.7", 31000, peer_id="p", also="FD00:0::7", advertise="10.0.0.8")) == {
        ("10.0.0.7", 31000): {"p"},
        ("fd00::7", 31000): {"p"},
    }


def test_entries_that_no_provider_record_can_have_are_left_out() -> None:
    assert known(entry("node7.internal"), entry(""), entry("10.0.0.7", 0), entry("10.0.0.7", 70000)) == {}
    assert known(entry("10.0.0.7", also="nonsense")) == {("10.0.0.7", 5000): set()}


async def test_the_entry_of_a_sidecar_is_found(autojump_clock: trio.testing.MockClock) -> None:
    """As the catalog changes; its last answer stays while Consul is away."""
    async with trio.open_nursery() as nursery:
        consul, catalog = FakeConsul(nursery), CatalogRegistries()
        assert catalog.known() == {}
        client = consul.client("n1")
        catalog.watch = CatalogWatch(client, REGISTRY)
        await nursery.start(catalog.watch.run)
        assert catalog.known() == {}
        for number in (7, 8):
            services = spegel_services(
                node=f"n{number}",
                address=f"10.0.0.{number}",
                peer_id=f"p{number}",
                router_addr=f"/ip4/10.0.0.{number}/tcp/5001",
                version="1",
                registry_port=5000,
                router_port=5001,
                metrics_port=9090,
            )
            before = catalog.watch.members
            for service in services.always:
                await client.register_service(service.to_json())
            await catalog.watch.changed(before)
        both = {("10.0.0.7", 5000): {"p7"}, ("10.0.0.8", 5000): {"p8"}}
        assert catalog.known() == both
        consul.links["n1"] = "no-leader"
        await trio.sleep(120)
        assert catalog.watch.problem is not None
        assert catalog.known() == both
        nursery.cancel_scope.cancel()
