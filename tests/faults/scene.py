# One cluster for all faults, because most of the time is that of starting it, and because what one fault leaves behind
# is what the next one finds.  n0 to n2 are Consul's servers, n7 is the world outside: the registry that images come
# from, and a Consul agent to look from, which no fault touches.  Everybody else has a runtime and a sidecar.
#
# Cables carry 200 Mbit/s, so that a layer takes a moment and a fault meets transfers on their way.

"""The cluster that everything happens to, and the account of what happened to pulls."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from lab import thorough
from lab.cluster import Cluster, Node
from lab.consul import ConsulOptions
from lab.image import MIB, build
from lab.process import Failed
from lab.registry import Registry
from lab.sidecar import METRICS_PORT, Flag

from tests.faults.load import Load, pull

T = TypeVar("T")

RUNTIMES = ["21", "17", "21", "16", "21", None, "21"]
"""containerd's versions; None is a Docker."""

_LAYERS = [8 * MIB, 300_000, 1000]
_IMAGES = 6
_HOLDERS = (0, 2, 5)
_RATE = 200  # Mbit/s
_HEALED = 90.0  # seconds, on a machine that does other things as well
_POLL = 0.2
HANG_TIMEOUT = 5.0


@dataclass(slots=True)
class Row:
    """What a fault did. Seconds; ``ring`` is from the end of the fault until everybody found all holders again."""

    fault: str
    lasted: float
    pulls: int = 0
    failed: int = 0
    slowest: float = 0.0
    upstream: int = 0
    lookups: int = 0
    missed: int = 0
    ring: float = 0.0


class Scene:
    """Seven nodes with sidecars, and the load on them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.lab = Cluster(8, consul=ConsulOptions(servers=3), containerd=[*RUNTIMES, None])
        self.rows: list[Row] = []

    def __enter__(self) -> Scene:
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stack.__exit__(exc_type, exc, tb)

    def _begin(self) -> None:
        lab = self._stack.enter_context(self.lab)
        self.nodes = lab.nodes[: len(RUNTIMES)]
        self.outside = lab.nodes[-1]
        docker = lab[RUNTIMES.index(None)]
        docker.add_docker("28")
        self.upstream: Registry = lab.start_registry(on=self.outside.index)
        self.images = [
            build(lab.dir / f"image{number}", f"docker.io/library/app{number}:v1", _LAYERS, seed=number)
            for number in range(_IMAGES)
        ]
        holders = {
            image.name: [self.nodes[(number + step) % len(self.nodes)] for step in _HOLDERS]
            for number, image in enumerate(self.images)
        }
        docker.docker.await_ready()
        for image in self.images:
            self.upstream.push(image)
        for node in self.nodes:
            (node.docker if node.has_docker else node.containerd).mirror(node_url(node), server=self.upstream.url)
            self.start(node)
            node.port.limit_rate(_RATE)
        for node in self.nodes:
            node.sidecar.await_ready(60)
        with ThreadPoolExecutor(4) as pool:
            whole = pool.map(
                pull, *zip(*((node, image) for image in self.images for node in holders[image.name]), strict=True)
            )
            assert set(whole) == {""}
        self.load = Load(self.nodes, self.images, holders)
        self.await_one_ring()
        self.await_health()
        self._stack.enter_context(self.load)

    def start(
        self,
        node: Node,
        *,
        env: Mapping[str, str] | None = None,
        mounts: Mapping[Path, str] | None = None,
        **more: Flag,
    ) -> None:
        """Start the node's sidecar, as its supervisor would."""
        hang_timeout = f"{HANG_TIMEOUT:g}s"
        node.start_sidecar(wait=False, env=env, mounts=mounts, log_level="info", hang_timeout=hang_timeout, **more)

    def mend(self) -> None:
        """After a fault that went wrong, so that the next one is not blamed for it."""
        for node in self.nodes:
            node.port.link_up()
            node.port.heal()
            self.unlimit(node)
            if not node.consul.running().alive:
                node.consul.start()
            if not node.sidecar.process.alive:
                self.start(node)
        self.await_one_ring()

    def rejoin(self, node: Node) -> None:
        """Have Consul's servers take a node back that they gave up; by themselves they would within minutes."""
        self.until(
            lambda: self.outside.consul.cli("join", node.ip) is not None, timeout=30, what=f"Consul reaches {node}"
        )

    def unlimit(self, node: Node) -> None:
        """Give the node's cable its usual rate again."""
        node.port.limit_rate(_RATE)

    @contextmanager
    def beside(self, do: Callable[[], object]) -> Iterator[None]:
        """Do something meanwhile, and raise what it raises."""
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(do)
            yield
            done.result()

    def leader(self) -> Node:
        """Who leads, as Consul says."""
        return self.until(self._leader, timeout=30, what="somebody leads")

    def _leader(self) -> Node | None:
        entry = self.outside.consul.kv_entry("spegel/leader")
        if entry is None or "Session" not in entry:
            return None
        name = json.loads(self.outside.consul.kv_get("spegel/leader") or b"{}").get("node")
        return next((node for node in self.nodes if node.name == name), None)

    @contextmanager
    def fault(self, what: str, *, spared: tuple[Node, ...] = (), unasked: tuple[Node, ...] = ()) -> Iterator[Row]:
        """The fault is made and undone within; then all has to be well again, and no pull may have failed.

        ``spared``: nodes on which no mirror could help. ``unasked``: nodes that can't know what others have.
        """
        self.load.check()
        row, began = Row(what, 0.0), time.monotonic()
        self.upstream.forget()
        with self.load.spare(*spared), self.load.unasked(*unasked, *spared):
            yield row
            ended = time.monotonic()
            row.lasted = round(ended - began, 1)
            try:
                self.await_one_ring()
                row.ring = round(time.monotonic() - ended, 1)
            finally:
                # nobody is spared any more, but what they do now belongs to the next
                self.load.drained(ended)
                self._fill(row, began)
                self.rows.append(row)
        self.await_health()
        self.load.check()
        failures = [each for each in self.load.pulls if each.began + each.seconds >= began and each.problem]
        assert not failures, failures
        assert row.pulls, "nothing was pulled"

    def _fill(self, row: Row, began: float) -> None:
        pulls = [each for each in self.load.pulls if each.began + each.seconds >= began]
        lookups = [each for each in self.load.lookups if began <= each.began <= began + row.lasted]
        row.pulls, row.failed = len(pulls), sum(bool(each.problem) for each in pulls)
        row.slowest = round(max((each.seconds for each in pulls), default=0.0), 1)
        row.upstream = sum("/blobs/" in request for request in self.upstream.requests())
        row.lookups, row.missed = len(lookups), sum(not each.found for each in lookups)

    def await_one_ring(self, timeout: float = _HEALED) -> None:
        """Wait until every node knows every other one and finds all who have an image for good."""
        deadline = time.monotonic() + timeout
        for node in self.nodes:
            missing: object = None
            while (missing := self._missing(node)) is not None:
                if time.monotonic() > deadline:
                    raise Failed(
                        f"not one ring after {timeout:g} s: {node.name} {missing}\n{node.sidecar.process.tail()}"
                    )
                time.sleep(_POLL)

    def _missing(self, node: Node) -> str | None:
        if not node.sidecar.process.alive:
            raise Failed(f"the sidecar of {node.name} has ended\n{node.sidecar.process.tail()}")
        members = self.metric(node, "spegel_ring_members")
        if members != len(self.nodes) - 1:
            return f"has {members} members"
        for image in self.images:
            holders = {holder.ip for holder in self.load.holders[image.name] if holder is not node}
            if lost := holders - self.load.look_up(node, image).found:
                return f"does not find {image.name} at {lost}"
        return None

    def await_health(self) -> None:
        """Wait until all sidecars are ready and in the catalog, and exactly one leads."""
        for node in self.nodes:
            node.sidecar.process.until(node.sidecar.is_ready, timeout=_HEALED, what=f"{node} is ready")
        self.until(
            lambda: len(self.outside.consul.instances("spegel-router")) == len(self.nodes),
            timeout=_HEALED,
            what="the catalog has all",
        )
        self.until(
            lambda: sum(self.metric(node, "spegel_leader") or 0 for node in self.nodes) == 1,
            timeout=_HEALED,
            what="exactly one leads",
        )

    def metric(self, node: Node, name: str) -> float | None:
        """None if it can't be asked."""
        try:
            answer = node.netns.request("GET", node.ip, METRICS_PORT, "/metrics", timeout=5)
        except (OSError, http.client.HTTPException):
            return None
        lines = (line for line in answer.body.decode().splitlines() if line.startswith(name + " "))
        return next((float(line.split()[-1]) for line in lines), None)

    @staticmethod
    def until(ask: Callable[[], T | None], *, timeout: float, what: str) -> T:
        """Ask until the answer is true; an agent that does not answer has not said so."""
        deadline, last = time.monotonic() + timeout, ""
        while True:
            try:
                if answer := ask():
                    return answer
            except (OSError, http.client.HTTPException, Failed) as exc:
                last = str(exc)
            if time.monotonic() > deadline:
                raise Failed(f"not within {timeout:g} s: {what} {last}")
            time.sleep(_POLL)


def node_url(node: Node) -> str:
    return f"http://{node.ip}:5000"


def lasting(seconds: float, in_short: float) -> float:
    """How long a fault lasts."""
    return seconds if thorough.ALL else in_short
