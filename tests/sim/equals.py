"""Nodes that pull one image from a ring of equals, which all have it: ``python -m tests.sim.equals --nodes 200``.

The choice of providers is the product's: a lookup cuts each keeper's answer to a few names, the race asks one of them,
and the loads that they tell decide between two. Holders count and refuse by the product's ``Uploads``. Links are
modelled in steps of 20 ms: a holder's uplink and a puller's downlink are shared evenly by the layers on them.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from dataclasses import dataclass, field

from spegel_consul.oci.errors import Busy
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.providers.hedging import Ask, Exhausted, Race, Wait
from spegel_consul.registry.mirror.providers.loads import Loads
from spegel_consul.registry.uploads import Upload, Uploads
from spegel_consul.ring.dht.iterative_lookup import Lookup
from spegel_consul.ring.dht.placement import REPLICAS

STEP = 0.02
MIB = 1 << 20
SLOTS = 3
ATTEMPTS = 3


@dataclass(frozen=True)
class Scene:
    """One run; rates are bytes per second. ``most``: uploads that a holder has at a time."""

    holders: int = 50
    pulls: int = 100
    within: float = 20.0
    layers: tuple[int, ...] = (64 * MIB, 30 * MIB, 30 * MIB, 8 * MIB, 2 * MIB, 2 * MIB)
    up: float = 1e9 / 8
    down: float = 1e9 / 8
    most: int | None = None
    by_load: bool = True
    """Whether loads decide; if not, the first provider that is named is asked, and all are named in one order."""
    seed: int = 0

    @property
    def image(self) -> int:
        return sum(self.layers)


@dataclass(eq=False)
class Holder:
    number: int
    uploads: Uploads
    sent: float = 0.0

    @property
    def registry(self) -> tuple[str, int]:
        return f"10.0.{self.number >> 8}.{self.number & 255}", 5000


@dataclass(eq=False)
class Layer:
    """A layer on its way: a race until it has a holder."""

    missing: float
    race: Race
    began: float
    holder: Holder | None = None
    streams_since: float = 0.0


@dataclass(eq=False)
class Puller:
    starts: float
    loads: Loads
    waiting: list[int]
    layers: list[Layer] = field(default_factory=list)
    finished: float = math.inf
    failed: int = 0
    refused: int = 0


@dataclass
class Outcome:
    """``hottest``: bytes of the node that sent most, by the mean; times in seconds; ``streams``: the most of a node."""

    hottest: float
    median: float
    last: float
    failed: int
    refused: int
    streams: int

    def __str__(self) -> str:
        return (
            f"hottest node {self.hottest:.2f} x the mean, pulls p50 {self.median:.1f} s, last {self.last:.1f} s, "
            f"at most {self.streams} uploads of a node, {self.refused} refusals, {self.failed} layers from upstream"
        )


class Equals:
    """One run of a scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.now = 0.0
        self._rng = rng = random.Random(scene.seed)
        self.holders = [Holder(number, Uploads(scene.most)) for number in range(scene.holders)]
        self._by_registry = {each.registry: each for each in self.holders}
        self.pullers = [
            Puller(rng.uniform(0, scene.within), Loads(random.Random(rng.random())), list(scene.layers))
            for _ in range(scene.pulls)
        ]
        self._streams = 0

    def run(self, limit: float = 600.0) -> Outcome:
        """Run until each pull is complete, at most ``limit`` seconds."""
        while self.now < limit and any(each.finished == math.inf for each in self.pullers):
            self.now += STEP
            active = [each for each in self.pullers if each.starts <= self.now and each.finished == math.inf]
            for puller in active:
                self._act(puller)
            self._carry(active)
        took = sorted(each.finished - each.starts for each in self.pullers)
        sent = [each.sent for each in self.holders]
        return Outcome(
            hottest=max(sent) * len(sent) / sum(sent),
            median=took[len(took) // 2],
            last=took[-1],
            failed=sum(each.failed for each in self.pullers),
            refused=sum(each.refused for each in self.pullers),
            streams=self._streams,
        )

    def _act(self, puller: Puller) -> None:
        while puller.waiting and len(puller.layers) < SLOTS:
            puller.layers.append(Layer(puller.waiting.pop(0), self._race(puller), self.now))
        for layer in [each for each in puller.layers if each.holder is None]:
            self._ask(puller, layer)
        if not puller.waiting and not puller.layers:
            puller.finished = self.now

    def _race(self, puller: Puller) -> Race:
        def choose(waiting: list[Provider]) -> Provider:
            return puller.loads.choose(waiting, self.now) if self.scene.by_load else waiting[0]

        race = Race(self.now, resolve_timeout=0.2, attempts=ATTEMPTS, hedge=0.1, choose=choose)  # type: ignore[arg-type]
        self._look_up(race)
        return race

    def _look_up(self, race: Race) -> None:
        search = Lookup(lambda: (), count=ATTEMPTS, exclude=b"", rng=random.Random(self._rng.random()))
        for _ in range(3):  # keepers
            # in random order, as the router names them
            known = self.holders
            if self.scene.by_load or len(known) > REPLICAS:
                known = self._rng.sample(known, min(len(known), REPLICAS))
            named = {b"%d" % each.number: each.registry for each in known}
            for found in search.offer(named) if self.scene.by_load else list(named)[:ATTEMPTS]:  # type: ignore[arg-type]
                race.found(Provider(found.decode(), named[found]))
        race.lookup_ended()

    def _ask(self, puller: Puller, layer: Layer) -> None:
        while True:
            action = layer.race.next(self.now)
            if isinstance(action, Wait):
                return
            if isinstance(action, Exhausted):
                puller.failed += 1
                puller.layers.remove(layer)
                return
            assert isinstance(action, Ask)
            provider = action.provider
            holder = self._by_registry[provider.registry]
            puller.loads.asked(provider.registry, self.now)
            try:
                holder.uploads.enter(Upload.BODY)
            except Busy as busy:
                puller.refused += 1
                wait = puller.loads.refused(provider.registry, busy.seconds, self.now)
                layer.race.refused(provider, wait, self.now)
                continue
            puller.loads.told(provider.registry, str(holder.uploads.streams), self.now)
            layer.race.accepted(provider)
            layer.holder, layer.streams_since = holder, self.now
            self._streams = max(self._streams, holder.uploads.streams)
            return

    def _carry(self, active: list[Puller]) -> None:
        for puller in active:
            streams = [each for each in puller.layers if each.holder is not None]
            for layer in streams:
                holder = layer.holder
                assert holder is not None
                share = min(self.scene.up / holder.uploads.streams, self.scene.down / len(streams)) * STEP
                moved = min(share, layer.missing)
                holder.sent += moved
                layer.missing -= moved
                if layer.missing <= 0:
                    puller.layers.remove(layer)
                    holder.uploads.leave(self.now - layer.streams_since)


MOST_HEAT = 3.0
"""Bytes of the hottest node by the mean, in a ring of equals."""


def main() -> int:
    asked = argparse.ArgumentParser(prog="python -m tests.sim.equals", description="Pulls from nodes that all have it.")
    asked.add_argument("--nodes", type=int, default=50, help="that have the image")
    asked.add_argument("--pulls", type=int, default=None, help="by default twice the nodes")
    asked.add_argument("--within", type=float, default=20.0, help="seconds in which the pulls begin")
    asked.add_argument("--max-upload", type=int, default=None)
    asked.add_argument("--link", type=float, default=1000, help="Mbit/s of each node, each way")
    asked.add_argument("--first-named", action="store_true", help="ask the first provider, as if none told its load")
    asked.add_argument("--seeds", type=int, default=3)
    options = asked.parse_args()
    failed = False
    for seed in range(options.seeds):
        scene = Scene(
            holders=options.nodes,
            pulls=options.pulls or 2 * options.nodes,
            within=options.within,
            up=options.link * 1e6 / 8,
            down=options.link * 1e6 / 8,
            most=options.max_upload,
            by_load=not options.first_named,
            seed=seed,
        )
        outcome = Equals(scene).run()
        failed |= outcome.hottest > MOST_HEAT
        print(f"seed {seed}: {outcome}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
