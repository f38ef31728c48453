# Two zones are two bridges with one line between them, so what crosses is what the line has carried: content, and the
# ring's own messages, which are some kilobytes a second.  The upstream is in the first zone.

"""Nodes in two zones: what goes over the line between them when they pull."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import thorough
from lab.cluster import Node
from lab.cold_start import ColdStart, Outcome, ingested, size_of
from lab.image import MIB, Image
from lab.process import until

pytestmark = pytest.mark.real

BETWEEN = 50  # Mbit/s between the zones
LINK = 200  # Mbit/s of each node
EACH = 3 if thorough.ALL else 2  # nodes of each zone
LAYERS = [9 * MIB, 5 * MIB]
TRIES = 4
"""A near node has 100 ms to answer before a far one is asked, which may be too little on a machine with other work."""
TALK = MIB
"""Bytes for everything but content: the ring, manifests, heads and acknowledgements."""


class Zones(ColdStart):
    """The first half of the nodes is in zone a with the upstream, the others are in zone b."""

    def __enter__(self) -> Zones:
        super().__enter__()
        self.a, self.b = self.nodes[:EACH], self.nodes[EACH:]
        self.lab.network.divide([node.port for node in self.b], BETWEEN)
        zones = {node.name: f"dc1/{'a' if node in self.a else 'b'}" for node in self.nodes}
        self.start_sidecars(zones=zones, verify_first="4MiB")
        return self

    def crossed(self, image: Image, nodes: list[Node]) -> float:
        """Copies of the image that crossed while ``nodes`` pulled it."""
        before = self.lab.network.crossed_bytes()
        assert_whole(self.pull(image, nodes=nodes))
        return (self.lab.network.crossed_bytes() - before - TALK) / sum(size_of(image).values())


@pytest.fixture(scope="module", params=["2.1", "1.7", "docker28"] if thorough.ALL else ["2.1"])
def zones(request: pytest.FixtureRequest) -> Iterator[Zones]:
    with Zones([request.param] * 2 * EACH, upstream_mbit=1000, link_mbit=LINK) as zones:
        yield zones


def assert_whole(outcome: Outcome) -> None:
    assert not outcome.failures


def test_what_crosses(zones: Zones) -> None:
    image = zones.image(LAYERS)
    assert zones.crossed(image, zones.a[:1]) <= 0, "the upstream is in its zone"
    # all at once: one takes the image from zone a, and the others follow that one
    assert 0.8 < zones.crossed(image, zones.b) <= 1.1
    zones.remove(image)

    for _ in range(TRIES):
        image = zones.image(LAYERS)
        assert_whole(zones.pull(image, nodes=[zones.a[0], zones.b[0]]))
        crossed = zones.crossed(image, [*zones.a[1:], *zones.b[1:]])
        zones.remove(image)
        if crossed <= 0:
            break
    assert crossed <= 0, "both zones have it"


def test_a_node_that_is_killed_in_the_zone_fails_no_pull(zones: Zones) -> None:
    image = zones.image([16 * MIB])
    assert_whole(zones.pull(image, nodes=[zones.a[0]]))
    assert_whole(zones.pull(image, nodes=[zones.b[0]]))
    near, asker = zones.b[:2]
    pulls = zones.begin(image, nodes=[asker])
    until(lambda: ingested(asker) > 4 * MIB, timeout=20, what="the pull is half done")
    near.sidecar.kill9()
    assert_whole(pulls.outcome())
    assert 'spegel_received_bytes_total{place="zone"}' in asker.sidecar.metrics()
    assert 'spegel_received_bytes_total{place="datacenter"}' in asker.sidecar.metrics()
    for node in zones.nodes:
        assert "Traceback" not in node.sidecar.log()
