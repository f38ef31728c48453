# The image is new for each fault, the nodes and their sidecars are not: what one fault leaves behind is what the next
# one finds.  The first node begins a moment before the others, so it is the one that downloads from the upstream; each
# fault nevertheless looks who does, because the upstream's connections say it whatever the product believes.

"""Nodes that pull one new image while something fails, and the account of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from lab import thorough
from lab.cluster import Node
from lab.cold_start import ColdStart, Outcome, Pulls, runtime
from lab.image import MIB, Image
from lab.process import until

from tests.faults.scene import HANG_TIMEOUT

RUNTIMES = ["1.7", "2.1", "2.1-parallel", "1.7", "2.1", "docker28"] if thorough.ALL else ["1.7", "2.1", "1.7", "2.1"]
LAYERS = [40 * MIB, 24 * MIB, 24 * MIB, 6 * MIB] if thorough.ALL else [16 * MIB, 12 * MIB, 6 * MIB]
UPSTREAM = 200 if thorough.ALL else 100  # Mbit/s: 4 s for one copy, or 3 s
VERIFY_FIRST = "8MiB"  # so all but the last layer pass as they grow
HEAD_START = 0.3
# the runtime of a node whose sidecar died goes on upstream, so two copies may leave it, and the headers of the packets
COPIES = 2.05
_BAD_PORT = 5060
_BAD_UPSTREAM = Path(__file__).with_name("bad_upstream.py")


class TooManyCopies(AssertionError):
    """No pull failed, and the upstream sent more than it should have."""


@dataclass(slots=True)
class ColdRow:
    """What a fault did. Seconds; ``first`` and ``last`` are when nodes that were not spared were ready."""

    fault: str
    pulls: int
    failed: int
    copies: float
    blobs: int
    first: float
    last: float
    line: float


@dataclass(slots=True)
class Run:
    """A cold start that goes on. ``spared``: nodes whose pull no mirror could help."""

    image: Image
    pulls: Pulls
    spared: list[Node] = field(default_factory=list)
    outcome: Outcome | None = None

    def last_ready(self) -> float:
        """Seconds until the last node was ready that is not spared."""
        assert self.outcome is not None
        spared = {node.name for node in self.spared}
        return max(pull.ended for pull in self.outcome.pulls if pull.node not in spared)


class ColdScene:
    """Nodes with runtimes and sidecars, and an upstream with a narrow line."""

    def __init__(self) -> None:
        self.cold = ColdStart(RUNTIMES, upstream_mbit=UPSTREAM)
        self.layers = LAYERS
        self.rows: list[ColdRow] = []
        self._stack = ExitStack()
        self._bad = 0

    def __enter__(self) -> ColdScene:
        self._stack.enter_context(self.cold)
        try:
            self.nodes = self.cold.nodes
            self._start(self.nodes)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stack.__exit__(exc_type, exc, tb)

    @contextmanager
    def fault(
        self,
        what: str,
        *,
        image: Image | None = None,
        nodes: Sequence[Node] = (),
        copies: float = COPIES,
        attempts: int = 1,
        timeout: float = 120.0,
    ) -> Iterator[Run]:
        """The pulls begin, the fault is made within, and no pull may fail but on nodes that are spared."""
        image = image or self.cold.image(self.layers)
        pulls = self.cold.begin(image, nodes=nodes, apart=HEAD_START, attempts=attempts, timeout=timeout)
        run = Run(image, pulls)
        try:
            yield run
        finally:
            run.outcome = outcome = pulls.outcome()
            spared = {node.name for node in run.spared}
            counted = [pull for pull in outcome.pulls if pull.node not in spared]
            failures = [pull for pull in counted if pull.problem]
            ready = sorted(pull.ended for pull in counted if not pull.problem) or [0.0]
            line = self.cold.line_seconds(image)
            self.rows.append(
                ColdRow(
                    what,
                    len(counted),
                    len(failures),
                    outcome.copies,
                    len(outcome.blobs),
                    ready[0],
                    ready[-1],
                    line,
                )
            )
        assert counted, "all nodes were spared"
        assert not failures, failures
        if outcome.copies > copies:
            raise TooManyCopies(f"{outcome.copies:.2f} copies left the upstream")
        for node in self.nodes:
            assert "Traceback" not in node.sidecar.log()
        self.mend()
        self.cold.remove(image)

    def mend(self) -> None:
        """Bring back all that was ended, and wait until everybody knows everybody."""
        upstream = self.cold.upstream
        if not upstream.running().alive:
            upstream.start()
            upstream.await_ready()
        for node in self.nodes:
            process = runtime(node).running()
            process.resume()
            if not process.alive:
                runtime(node).start()
                runtime(node).await_ready()
            self.cold.ask_mirror(node)
        for node in self.nodes:
            if node.sidecar.stopped:
                node.sidecar.kill9()
        self._start([node for node in self.nodes if not node.sidecar.process.alive])

    @contextmanager
    def bad_upstream(self, way: str) -> Iterator[str]:
        """The URL of a registry that fails in one ``way``, see bad_upstream.py."""
        outside = self.cold.lab[0]
        self._bad += 1
        listen = f"{outside.ip}:{_BAD_PORT + self._bad}"
        process = outside.netns.start(
            f"bad upstream: {way}",
            [sys.executable, _BAD_UPSTREAM, listen, self.cold.upstream.host, way],
            log_path=self.cold.lab.dir / f"bad-upstream-{self._bad}.log",
        )
        try:
            process.until(lambda: self._listens(listen), timeout=20, what="the bad upstream listens")
            yield f"http://{listen}"
        finally:
            process.kill9()

    def await_found(self, image: Image, by: Sequence[Node]) -> None:
        """Wait until the sidecars of ``by`` find a provider of ``image``."""
        path = f"/v2/{image.repository}/manifests/{image.amd64.manifest}?ns={image.registry}"
        for node in by:
            until(lambda node=node: node.request(path).status == 200, timeout=20, what=f"{node} finds {image.name}")

    def _start(self, nodes: Sequence[Node]) -> None:
        if nodes:
            flags = {"hang_timeout": f"{HANG_TIMEOUT:g}s", "verify_first": VERIFY_FIRST}
            self.cold.start_sidecars(nodes, follow="on", **flags)

    def _listens(self, address: str) -> bool:
        host, _, port = address.rpartition(":")
        try:
            self.cold.lab[0].netns.connect(host, int(port)).close()
        except OSError:
            return False
        return True
