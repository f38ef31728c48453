"""What a herd of :mod:`tests.sim.herd` is made of: the scene, its nodes and transfers, and the outcome of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from spegel_consul.places import Place
from spegel_consul.ring.dht.claim_reports import What, Why

STEP = 0.05
MIB = 1 << 20
SLOTS = 3
VERIFY_FIRST = 32 * MIB
LAG, LAG_FOR = 4 * MIB, 1.0


def mbit(number: float) -> float:
    """Bytes per second."""
    return number * 1e6 / 8


@dataclass(frozen=True)
class Scene:
    """One run; rates are bytes per second."""

    nodes: int = 6
    layers: tuple[int, ...] = (64 * MIB,) * 4 + (2 * MIB,)
    line: float = mbit(200)
    link: float = mbit(1000)
    deaths: float = 0.0
    apart: float = 0.0
    slow_claimer: float = 0.0
    """The upstream rate of the first node, if it is slow."""
    slow_middle: float = 0.0
    """The downlink of a node in the middle, if it is slow."""
    keeper_dies: bool = False
    patient: bool = True
    """Whether a source that waits for its own source keeps its followers waiting, up to WAIT and CHAIN_STALL."""
    hung_claimer: str = ""
    """The hanging part of the first node: "runtime" or "machine"; the machine is the keeper too if ``keeper_dies``."""
    hangs_at: float = 3.0
    claimers_hang_at: tuple[float, ...] = ()
    """The moments at which the machine of the present claimer stands still."""
    providers_first: bool = False
    """Whether a layer is asked of complete nodes before the source of the verdict."""
    zones: int = 0
    """Number of zones; 0: the nodes don't say where they are."""
    racks: int = 0
    """Number of racks of each zone, by which bytes are counted."""
    silent_racks: bool = False
    """Whether the nodes don't say in which rack they are."""
    lines: int = 0
    """Number of zones by which bytes are counted and ``trunk`` limits, if it is not ``zones``."""
    trunk: float = math.inf
    """The line of each zone to and from the others."""
    near_only: bool = False
    """Whether no node follows across zones (--cross-zone=never)."""
    seed: int = 0

    def line_of(self, number: int) -> int:
        """The zone of a node."""
        return number % (self.lines or self.zones or 1)

    def rack_of(self, number: int) -> str:
        """The rack of a node, whether the nodes say it or not."""
        zones = self.lines or self.zones or 1
        return f"{number % zones}-{number // zones % (self.racks or 1)}"

    def place_of(self, number: int) -> Place:
        """What a node says of itself."""
        return Place("dc1", f"zone{self.line_of(number)}", self.rack_of(number) if self.tells_rack else "")

    @property
    def tells_rack(self) -> bool:
        return bool(self.racks) and not self.silent_racks

    @property
    def image(self) -> int:
        return sum(self.layers)


@dataclass(eq=False)
class Transfer:
    """A layer on its way to a node; without ``source`` from upstream."""

    layer: int
    source: Node | None
    began: float
    moved: float
    kept: bool = False
    streams: bool = False
    """Whether bytes have come from the present source."""
    grew: float = 0.0
    """The moment at which the node's file of the layer grew, or lost its source."""
    lagging_since: float = math.inf


@dataclass(eq=False)
class Node:
    number: int
    starts: float
    dies: float
    hangs: bool
    up: float
    down: float
    upstream: float
    got: list[float]
    shown: list[float]
    transfers: dict[int, Transfer] = field(default_factory=dict)
    what: What | None = None
    source: Node | None = None
    due: float = 0.0
    finished: float = math.inf
    moved: float = math.inf
    """The moment of its last progress."""
    longest: float = 0.0
    stalls: float = math.inf
    """The moment from which its runtime gets nothing more, although its mirror lives."""
    from_upstream: float = 0.0
    crossed: float = 0.0
    """Bytes from nodes of other zones."""
    left_rack: float = 0.0
    """Bytes from nodes of other racks, of any zone."""
    gave: float = 0.0
    """Bytes to other nodes."""
    turned: float = 0.0
    """The moment of its last new verdict."""

    @property
    def id(self) -> bytes:
        return b"%d" % self.number

    def lives(self, now: float) -> bool:
        return self.starts <= now < self.dies

    def has(self) -> int:
        return int(sum(self.shown)) // MIB * MIB


@dataclass
class Outcome:
    """What a run has shown; seconds, and upstream bytes by the size of the image."""

    factor: float
    last: float
    longest: float
    claims: int
    alone: int
    unfinished: int
    last_fast: float
    """The last node whose own line is not slow."""
    losses: list[tuple[int, int, Why]]
    """Losses that were reported: by which node, of which node, and why."""
    crossed: float
    """Bytes between zones, by the size of the image."""
    left_racks: float
    """Bytes between racks of all zones, by the size of the image."""
    hottest: float
    """Bytes that the busiest node gave, by the mean of all nodes."""

    def __str__(self) -> str:
        return (
            f"{self.factor:.2f} x upstream, {self.crossed:.2f} x between zones, {self.left_racks:.2f} x between racks, "
            f"last node {self.last:.1f} s (of fast lines {self.last_fast:.1f} s), "
            f"longest wait {self.longest:.1f} s, {self.claims} claims, {self.alone} alone, {len(self.losses)} losses, "
            f"{self.unfinished} unfinished, hottest node {self.hottest:.1f} x the mean"
        )
