# The image is of random bytes and new each time, so nobody has it before the pulls begin.  Figures of the upstream are
# those of its own interface, because a request that was cut appears in no log with the bytes that it took.  Content is
# verified after the last pull, because hashing takes the processor from pulls that still run.

"""Nodes that pull one new image at the same time, and what their upstream had to send for it."""

from __future__ import annotations

import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

from lab.cluster import Cluster, Node
from lab.containerd import Containerd, PullError
from lab.docker import Dockerd
from lab.image import MIB, Image, build, is_whole
from lab.process import Failed, run, until
from lab.registry import Registry
from lab.sidecar import Flag

PARALLEL = """
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = 4
  concurrent_layer_fetch_buffer = 8388608
"""
"""Configuration of containerd 2.1 for fetching a layer in pieces."""

_ADD: Mapping[str, Callable[[Node], Containerd | Dockerd]] = {
    "1.6": lambda node: node.add_containerd("16"),
    "1.7": lambda node: node.add_containerd("17"),
    "2.1": lambda node: node.add_containerd("21"),
    "2.1-parallel": lambda node: node.add_containerd("21", extra=PARALLEL),
    "docker28": lambda node: node.add_docker("28"),
}
RUNTIMES = tuple(_ADD)
"""Names of runtimes."""

_RETRY_AFTER = 1.0  # seconds; kubelet waits for ten
_RING_TIMEOUT = 30.0
_DELIVERED = re.compile(r"\S+:\d+ +(?P<client>[\d.]+):\d+ .*?bytes_acked:(?P<bytes>\d+)")


@dataclass(frozen=True, slots=True)
class Pull:
    """One pull that has ended. Seconds are since the first one began; ``problem`` is empty if the image is right."""

    node: str
    began: float
    ended: float
    attempts: int
    problem: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the pulls. ``blobs``: client's address and digest of each GET at the upstream."""

    pulls: tuple[Pull, ...]
    image_bytes: int
    upstream_bytes: int
    blobs: tuple[tuple[str, str], ...]
    manifests: int
    heads: int

    @property
    def copies(self) -> float:
        """How many times the image went through the upstream's line."""
        return self.upstream_bytes / self.image_bytes

    @property
    def failures(self) -> list[Pull]:
        return [pull for pull in self.pulls if pull.problem]

    @property
    def ready(self) -> list[float]:
        """Seconds until each node had the image, the first one first."""
        return sorted(pull.ended for pull in self.pulls if not pull.problem)


class ColdStart:
    """One node for each of ``runtimes``, behind one upstream on a node of its own.

    ``upstream_mbit`` is what the upstream sends in all, ``link_mbit`` what each of the other nodes sends.
    """

    def __init__(self, runtimes: Sequence[str], *, upstream_mbit: int, link_mbit: int = 1000) -> None:
        self.lab = Cluster(len(runtimes) + 1, consul=False, containerd=None)
        self.nodes = self.lab.nodes[1:]
        self.upstream_mbit = upstream_mbit
        self.runtimes = runtimes
        self._link_mbit = link_mbit
        self._images = 0

    def __enter__(self) -> ColdStart:
        self.lab.__enter__()
        try:
            started = [_ADD[name](node) for node, name in zip(self.nodes, self.runtimes, strict=True)]
            self.upstream: Registry = self.lab.start_registry(0)
            for runtime in started:
                runtime.await_ready()
            self.lab[0].port.limit_rate(self.upstream_mbit)
            for node in self.nodes:
                node.port.limit_rate(self._link_mbit)
        except BaseException:
            self.lab.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.lab.__exit__(exc_type, exc, tb)

    def image(self, layers: Sequence[int]) -> Image:
        """An image of random bytes that only the upstream has: busybox and ``layers``."""
        self._images += 1
        directory = self.lab.dir / f"image{self._images}"
        name = f"{self.upstream.host}/library/app{self._images}:v1"
        image = build(directory, name, layers, seed=secrets.randbits(48))
        self.upstream.push(image, timeout=120)
        image.tar.unlink()
        return image

    def line_seconds(self, image: Image) -> float:
        """How long the upstream's line takes for one copy of ``image``."""
        return sum(size_of(image).values()) * 8 / (self.upstream_mbit * 1e6)

    def without_mirror(self) -> None:
        """Have all runtimes ask the upstream alone."""
        for node in self.nodes:
            runtime(node).mirror(server=self.upstream.url)

    def ask_mirror(self, node: Node, server: str | None = None) -> None:
        """Have the node's runtime ask its own sidecar, then ``server``, which is the upstream unless given."""
        runtime(node).mirror(f"http://{node.ip}:5000", server=server or self.upstream.url)

    def start_sidecars(
        self, nodes: Iterable[Node] = (), *, zones: Mapping[str, str] | None = None, **flags: Flag
    ) -> None:
        """Start a sidecar on all nodes, or on ``nodes``, and wait until everybody knows everybody.

        ``zones``: the zone of each node, by its name.
        """
        bootstrap = ",".join(f"{node.ip}:5001" for node in self.nodes[:2])
        for node in list(nodes) or self.nodes:
            self.ask_mirror(node)
            own: Mapping[str, Flag] = {"zone": zones[node.name]} if zones else {}
            node.start_sidecar(wait=False, static_bootstrap_peers=bootstrap, skip_preflight=True, **flags, **own)
        for node in self.nodes:
            node.sidecar.await_ready()
        for node in self.nodes:
            node.sidecar.process.until(
                lambda node=node: metric(node, "spegel_ring_members") == len(self.nodes) - 1,
                timeout=_RING_TIMEOUT,
                what=f"{node} knows all members",
            )

    def stop_sidecars(self) -> None:
        for node in self.nodes:
            node.sidecar.stop()

    def begin(
        self,
        *images: Image,
        nodes: Sequence[Node] = (),
        apart: float = 0.0,
        attempts: int = 1,
        timeout: float = 60.0,
    ) -> Pulls:
        """Begin to pull each of ``images`` on all nodes, or on ``nodes`` in this order.

        The nodes begin in one moment, or one after the other ``apart`` seconds. An attempt ends after ``timeout``.
        With an even number the node pulls ``images`` in their order, with an odd one in the opposite order.
        """
        return Pulls(self, images, list(nodes) or self.nodes, apart, attempts, timeout)

    def pull(self, *images: Image, nodes: Sequence[Node] = (), apart: float = 0.0, timeout: float = 60.0) -> Outcome:
        """Like :meth:`begin`, and wait for all of them."""
        return self.begin(*images, nodes=nodes, apart=apart, timeout=timeout).outcome()

    def remove(self, image: Image) -> None:
        """Remove ``image`` and its content wherever it is."""
        for node in self.nodes:
            with suppress(Failed, KeyError):  # a pull that failed left no image
                if node.has_docker:
                    node.docker.docker("image", "rm", "--force", image.name)
                else:
                    node.containerd.remove_image(image.name)
        shutil.rmtree(image.layout)

    def downloads(self) -> dict[str, int]:
        """Bytes that the upstream has delivered on connections that are open now, by the client's address."""
        delivered: dict[str, int] = {}
        for match in _DELIVERED.finditer(self.lab[0].netns.run("ss", "-OHtin", "state", "established")):
            delivered[match["client"]] = delivered.get(match["client"], 0) + int(match["bytes"])
        return delivered


@dataclass(slots=True)
class Pulls:
    """Pulls that run, each in a thread; :meth:`outcome` waits for them."""

    cold: ColdStart
    images: tuple[Image, ...]
    nodes: Sequence[Node]
    apart: float
    attempts: int
    timeout: float
    _threads: list[threading.Thread] = field(init=False)
    _done: list[tuple[Node, Image, Pull]] = field(init=False, default_factory=list)
    _began: float = field(init=False)
    _sent: int = field(init=False)

    def __post_init__(self) -> None:
        self.cold.upstream.forget()
        self._sent = self.cold.lab[0].port.sent_bytes()
        self._began = time.monotonic()
        together = threading.Barrier(len(self.nodes) * len(self.images))
        self._threads = [
            threading.Thread(target=self._pull, args=(number, node, image, position, together), daemon=True)
            for number, node in enumerate(self.nodes)
            for position, image in enumerate(self.images if number % 2 == 0 else self.images[::-1])
        ]
        for thread in self._threads:
            thread.start()

    def claimer(self, least: int = 4 * MIB) -> Node:
        """The node that downloads most from the upstream, as soon as it has ``least`` bytes from there."""
        return self._first_with(self.cold.downloads, least, "a node downloads from the upstream")

    def follower(self, claimer: Node, least: int = 4 * MIB) -> Node:
        """Another node, as soon as its runtime has ``least`` bytes of downloads in progress."""

        def growing() -> dict[str, int]:
            return {node.ip: ingested(node) for node in self.nodes if node is not claimer}

        return self._first_with(growing, least, "a node follows")

    def _first_with(self, ask: Callable[[], Mapping[str, int]], least: int, what: str) -> Node:
        found: list[Node] = []

        def happened() -> bool:
            amounts = ask()
            most = max(self.nodes, key=lambda node: amounts.get(node.ip, 0))
            if amounts.get(most.ip, 0) >= least:
                found.append(most)
            elif len(self._done) == len(self._threads):
                raise Failed(f"the pulls ended before: {what}")
            return bool(found)

        until(happened, timeout=self.timeout, what=f"{what}, {least >> 20} MiB")
        return found[0]

    def await_others(self, *nodes: Node) -> None:
        """Wait until the pulls on all but ``nodes`` have ended."""
        others = {node.name for node in self.nodes if node not in nodes}
        until(
            lambda: others <= {node.name for node, _, _ in self._done},
            timeout=self.attempts * (self.timeout + 20),
            what="the pulls on the other nodes have ended",
        )

    def outcome(self) -> Outcome:
        """Wait until all have ended, and look at what they left."""
        for thread in self._threads:
            thread.join(self.apart * len(self.nodes) + self.attempts * (self.timeout + 20))
        if any(thread.is_alive() for thread in self._threads):
            raise Failed(f"a pull has not ended: {[pull.node for _, _, pull in self._done]} have")
        assert len(self._done) == len(self._threads), "a pull left no trace"
        upstream = self.cold.upstream
        sent = self.cold.lab[0].port.sent_bytes() - self._sent
        pulls = tuple(_verified(node, image, pull) for node, image, pull in self._done)
        requests = [request for request in upstream.requests() if "/manifests/" in request]
        return Outcome(
            tuple(sorted(pulls, key=lambda pull: pull.node)),
            sum(sum(size_of(image).values()) for image in self.images),
            sent,
            tuple(upstream.blob_requests()),
            sum(request.startswith("GET ") for request in requests),
            sum(request.startswith("HEAD ") for request in requests),
        )

    def _pull(self, number: int, node: Node, image: Image, position: int, together: threading.Barrier) -> None:
        began, problem, attempt = time.monotonic(), "", 0
        try:
            together.wait(30)
            # the second image of a node begins a moment later, so that each of two nodes claims another one
            time.sleep(number * self.apart + 0.3 * position)
            began = time.monotonic()
            while attempt < self.attempts:
                attempt += 1
                try:
                    _pull_once(node, image, self.timeout)
                    problem = ""
                    break
                except PullError as exc:
                    problem = str(exc).partition("--- end of")[0][-500:]
                    time.sleep(_RETRY_AFTER)
        except Exception as exc:  # a thread has nobody who would see it
            problem = f"it could not be tried: {exc!r}"
        ended = time.monotonic()
        pull = Pull(node.name, began - self._began, ended - self._began, attempt, problem)
        self._done.append((node, image, pull))


def runtime(node: Node) -> Containerd | Dockerd:
    """The runtime that the node has."""
    return node.docker if node.has_docker else node.containerd


def ingested(node: Node) -> int:
    """Bytes of downloads in progress at the node's runtime."""
    total = 0
    for data in (runtime(node).content_path / "ingest").glob("*/data"):
        with suppress(FileNotFoundError):
            total += data.stat().st_size
    return total


def metric(node: Node, name: str) -> float:
    """A metric of the node's sidecar without labels; 0 if there is none."""
    with suppress(OSError):
        for line in node.sidecar.metrics().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
    return 0.0


def size_of(image: Image) -> dict[str, int]:
    """Sizes of all that a node gets, by digest."""
    return {digest: image.blob(digest).stat().st_size for digest in image.digests}


def can_follow() -> bool:
    """Whether the product has the setting ``--follow``."""
    return "--follow" in run([sys.executable, "-m", "spegel_consul", "registry", "--help"], timeout=60)


def _pull_once(node: Node, image: Image, timeout: float) -> None:
    if node.has_docker:
        node.docker.pull(image.name, timeout)
    else:
        node.containerd.pull_cri(image.name, timeout)


def _verified(node: Node, image: Image, pull: Pull) -> Pull:
    wrong = [digest for digest in image.digests if not is_whole(runtime(node).content_path, digest)]
    if pull.problem or not wrong:
        return pull
    return Pull(pull.node, pull.began, pull.ended, pull.attempts, f"not whole: {wrong}")
