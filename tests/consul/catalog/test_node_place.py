"""The place of a node from its Consul agent, and the round trips from Consul's coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from spegel_consul.consul.api.client import AgentNode, ConsulClient, Coordinate, HealthyService
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.consul.catalog.network_coordinates import NetworkCoordinates, round_trip
from spegel_consul.consul.catalog.node_place import AGAIN, AT_START, NodePlace, place_of
from spegel_consul.consul.catalog.service_definitions import ROUTER, place_meta, spegel_services
from spegel_consul.places import NOWHERE, Here, Place

Answer = Callable[[httpx.Request], httpx.Response]


def agent(meta: Any = None, **config: Any) -> httpx.Response:
    return httpx.Response(200, json={"Config": {"Datacenter": "dc1", "NodeName": "n1", **config}, "Meta": meta})


class Agent:
    """Answers with ``answer``, which a test may replace."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer: httpx.Response | None = answer
        self.asked: list[float] = []

    def client(self) -> ConsulClient:
        async def handle(request: httpx.Request) -> httpx.Response:
            self.asked.append(trio.current_time())
            if self.answer is None:
                await trio.sleep_forever()
            assert self.answer is not None
            return self.answer

        return ConsulClient(ConsulSettings(), transport=httpx.MockTransport(handle))


@pytest.mark.parametrize(
    ("meta", "place"),
    [
        ({}, Place("dc1")),
        ({"zone": "a"}, Place("dc1", "a")),
        ({"az": "eu-1a", "rack": "r7"}, Place("dc1", "eu-1a", "r7")),
        ({"zone": "", "az": "b"}, Place("dc1", "b")),
        ({"zone": "a", "az": "b"}, Place("dc1", "a")),
        ({"zone": "z" * 10240, "rack": "r7"}, Place("dc1", "", "r7")),
        ({"zone": "zürich"}, Place("dc1")),
        ({"zone": "a/b/c"}, Place("dc1")),
    ],
)
def test_node_metadata_is_a_place(meta: dict[str, str], place: Place) -> None:
    assert place_of(AgentNode("n1", "dc1", meta)) == place


async def test_the_place_is_known_when_the_stage_has_started(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    consul, here = Agent(agent({"zone": "a"})), Here()
    place = NodePlace(consul.client(), here, Place(zone="own"))
    await nursery.start(place.run)
    assert here.place == Place("dc1", "own"), "what the settings say goes first"
    assert (place.node, place.problem) == ("n1", None)


async def test_a_consul_that_hangs_delays_the_start_for_a_second(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    consul, here, told = Agent(agent()), Here(), []
    consul.answer = None
    place = NodePlace(consul.client(), here, NOWHERE)
    began = trio.current_time()
    await nursery.start(place.run)
    assert trio.current_time() - began == pytest.approx(AT_START)
    assert here.place == NOWHERE
    consul.answer = agent({"zone": "a"})
    place.changed = told.append
    await trio.sleep(60)
    assert here.place == Place("dc1", "a")
    assert told == [here.place]


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500, text="No cluster leader"),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"Config": {}}),
        httpx.Response(200, json={"Config": {"Datacenter": "dc1", "NodeName": "n1"}, "Meta": [1]}),
    ],
)
async def test_no_answer_ends_the_task(
    nursery: trio.Nursery, autojump_clock: MockClock, answer: httpx.Response
) -> None:
    consul, here = Agent(answer), Here()
    place = NodePlace(consul.client(), here, NOWHERE)
    await nursery.start(place.run)
    assert here.place == NOWHERE
    assert place.problem is not None
    consul.answer = agent({"zone": "a"})
    await trio.sleep(61)
    assert (here.place, place.problem) == (Place("dc1", "a"), None)


async def test_a_token_without_the_right_is_told_which_and_does_not_ask_on_and_on(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    consul = Agent(httpx.Response(403, text="Permission denied"))
    place = NodePlace(consul.client(), Here(), NOWHERE)
    await nursery.start(place.run)
    assert place.problem is not None
    assert "agent_prefix read, or give --zone" in place.problem
    await trio.sleep(AGAIN - 1)
    assert len(consul.asked) == 1


async def test_metadata_that_changes_with_the_agent_is_noticed(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    consul, here = Agent(agent({"zone": "a"})), Here()
    await nursery.start(NodePlace(consul.client(), here, NOWHERE).run)
    consul.answer = agent({"zone": "b"})
    await trio.sleep(AGAIN + 1)
    assert here.place == Place("dc1", "b")


def test_the_catalog_names_the_place() -> None:
    given = {"node": "n1", "address": "10.0.0.7", "peer_id": "p", "router_addr": "/ip4/10.0.0.7/tcp/5001/p2p/p"}
    ports = {"registry_port": 5000, "router_port": 5001, "metrics_port": 9090}
    services = spegel_services(**given, version="1", **ports, place=Place("dc1", "a"))  # type: ignore[arg-type]
    assert all(each.meta["place"] == "dc1/a" and each.meta["zone"] == "a" for each in services.always)
    assert place_meta(NOWHERE) == {}


ONE = Coordinate((0.003, 0.004), 0.001, 0.0)


@pytest.mark.parametrize(
    ("other", "seconds"),
    [
        (Coordinate((0.0, 0.0), 0.002, 0.0), 0.008),
        (Coordinate((0.0, 0.0), 0.002, 0.001), 0.009),
        (Coordinate((0.0, 0.0), 0.002, -1.0), 0.008),
        (Coordinate((0.0,), 0.0, 0.0), None),
        (Coordinate((math.inf, 0.0), 0.0, 0.0), None),
        (Coordinate((math.nan, 0.0), 0.0, 0.0), None),
    ],
)
def test_coordinates_are_compared_as_consul_does(other: Coordinate, seconds: float | None) -> None:
    assert round_trip(ONE, other) == (pytest.approx(seconds) if seconds is not None else None)


def row(node: str, *vector: float) -> dict[str, object]:
    return {"Node": node, "Segment": "", "Coord": {"Vec": vector, "Error": 1.5, "Adjustment": 0, "Height": 0.001}}


async def test_round_trips_are_known_for_the_members_of_the_catalog(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    consul = Agent(agent())
    client, here = consul.client(), Here()
    place = NodePlace(client, here, NOWHERE)
    await nursery.start(place.run)
    catalog = CatalogWatch(client, ROUTER)
    catalog._members.set(
        tuple(
            HealthyService(f"r{n}", ROUTER, f"n{n}", f"10.0.0.{n}", 5001, meta={"peer_id": f"p{n}"}) for n in (1, 2, 3)
        )
    )
    coordinates = NetworkCoordinates(client, here, place, catalog)
    await nursery.start(coordinates.run)
    consul.answer = httpx.Response(200, json=[row("n1", 0.0, 0.0), row("n2", 0.03, 0.04)])
    await trio.sleep(60)
    assert coordinates.estimate("p2") == pytest.approx(0.052)
    assert coordinates.estimate("p3") is None
    for answer in (httpx.Response(200, json=[{"Node": 1}]), httpx.Response(200, json={}), httpx.Response(403)):
        consul.answer = answer
        await trio.sleep(400)


async def test_a_node_with_a_zone_reads_no_coordinates(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    consul = Agent(agent({"zone": "a"}))
    client, here = consul.client(), Here()
    place = NodePlace(client, here, NOWHERE)
    await nursery.start(place.run)
    before = len(consul.asked)
    await nursery.start(NetworkCoordinates(client, here, place, CatalogWatch(client, ROUTER)).run)
    await trio.sleep(AGAIN - 10)
    assert len(consul.asked) == before
