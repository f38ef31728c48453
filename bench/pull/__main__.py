# The daemons, the upstream and the networks are those of the tests (tests/lab).  Each turn has sidecars of its own, and
# the puller's image is removed after it with its content, so that all turns begin alike but for the page cache, which
# every turn finds warm.

"""Measure a pull of one image through the CRI: two nodes with real containerds, of which one has the image.

    python -m bench.pull [--spegel PATH] [--image 4x255MiB] [--turns 3] [--busy 2] [--at-once 16]

The turns: "default" and "auto" are sidecars with --verify=on and --verify=auto, "off" with --verify=off, "upstream" is
a pull from the registry without mirrors. Needs root, curl and the parts of .ci/install-real-parts.

  seconds  of the call PullImage: download, verification and unpacking by containerd; with --at-once N of the download
           of the layers alone, N at once, by a client that drops them.
  CPU      user and system of both sidecars, with their guards.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lab import image as images
from lab import parts
from lab.cluster import Cluster, Node
from lab.containerd import CRI_NAMESPACE
from lab.process import Failed, Process
from lab.sidecar import arguments
from rich.console import Console
from rich.table import Table

from bench import beside, proc
from bench.herd.options import layers

UPSTREAM, DEFAULT, SPEGEL = "upstream", "default", "Spegel"
_VERIFY = {DEFAULT: "on", "auto": "auto", "off": "off"}
_REPOSITORY = "bench/app"
_FOUND_WITHIN = 60.0
_SETTLED = 2.0  # seconds after which start-up costs no CPU any more
_BOOTSTRAP_PORT = 8080


@dataclass(slots=True)
class Figures:
    """Of one way to pull: seconds, and CPU seconds of both sidecars, by turn."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


class Bench:
    """A registry on node 0, the holder of the image on node 1, the puller on node 2."""

    def __init__(self, lab: Cluster, image: images.Image, spegel: Path | None, at_once: int) -> None:
        self._lab = lab
        self._at_once = at_once
        self._holder, self._puller = lab[1], lab[2]
        self._spegel = spegel
        self._image = image
        self._upstream = lab.start_registry(0)
        self._upstream.push(image, timeout=300)
        self.ref = f"{self._upstream.host}/{image.repository}:{image.tag}"
        self._direct()
        self._holder.containerd.pull_cri(self.ref, 300)

    def _direct(self) -> None:
        for node in (self._holder, self._puller):
            node.containerd.mirror(registry=self._upstream.host, server=self._upstream.url)

    def turn(self, way: str, found: Figures) -> None:
        """One pull. Raises Failed if it failed, or if its layers did not come the way that it is about."""
        with self._mirrors(way) as pids:
            self._upstream.forget()
            before, began = _cpu(pids), time.monotonic()
            if self._at_once:
                self._download()
            else:
                self._puller.containerd.pull_cri(self.ref, 600)
            found.seconds.append(time.monotonic() - began)
            found.cpu.append(_cpu(pids) - before)
            asked = len(self._upstream.blob_requests())
            if bool(asked) != (way == UPSTREAM):
                raise Failed(f"{way}: {asked} blobs were asked for at the registry")
        self._direct()
        if not self._at_once:
            self._puller.containerd.remove_image(self.ref, timeout=120)

    def _download(self) -> None:
        blobs = f"http://{self._puller.ip}:5000/v2/{_REPOSITORY}/blobs"
        urls = self._puller.dir / "urls"
        urls.write_text(
            "".join(
                f"url = {blobs}/{layer}?ns={self._upstream.host}\noutput = /dev/null\n"
                for layer in self._image.amd64.layers
            )
        )
        words = ["--silent", "--show-error", "--fail", "--parallel", "--parallel-max", str(self._at_once)]
        self._puller.netns.run("curl", *words, "--config", urls, timeout=600)

    @contextmanager
    def _mirrors(self, way: str) -> Iterator[list[int]]:
        """The mirrors of both nodes run, and the puller's finds the image; their pids."""
        if way == UPSTREAM:
            yield []
            return
        nodes = self._holder, self._puller
        start = self._start_spegel if way == SPEGEL else self._start_own
        with ExitStack() as stack:
            processes = [start(node, other, way, stack) for node, other in zip(nodes, reversed(nodes), strict=True)]
            for process in processes:
                process.until(self._is_found, timeout=_FOUND_WITHIN, what=f"{way}: the image is found")
            for node in nodes:
                node.containerd.mirror(
                    f"http://{node.ip}:5000", registry=self._upstream.host, server=self._upstream.url
                )
            time.sleep(_SETTLED)
            yield [process.pid for process in processes]

    def _is_found(self) -> bool:
        path = f"/v2/{_REPOSITORY}/manifests/{self._image.index}?ns={self._upstream.host}"
        try:
            return self._puller.request(path, method="HEAD").status == 200
        except OSError:
            return False

    def _start_own(self, node: Node, other: Node, way: str, stack: ExitStack) -> Process:
        sidecar = node.start_sidecar(
            wait=False,
            static_bootstrap_peers=[f"/ip4/{other.ip}/tcp/5001"],
            skip_preflight=True,
            log_level="error",
            verify=_VERIFY[way],
        )
        stack.callback(sidecar.stop)
        return sidecar.process

    def _start_spegel(self, node: Node, other: Node, way: str, stack: ExitStack) -> Process:
        assert self._spegel is not None
        containerd, home = node.containerd, node.dir / "go"
        home.mkdir(exist_ok=True)
        flags = arguments(
            {
                "bootstrap_kind": "http",
                "http_bootstrap_addr": f"{node.ip}:{_BOOTSTRAP_PORT}",
                "http_bootstrap_url": f"http://{other.ip}:{_BOOTSTRAP_PORT}/id",
                "data_dir": home,
                "registry_addr": f"{node.ip}:5000",
                "router_addr": f"{node.ip}:5001",
                "metrics_addr": f"{node.ip}:9090",
                "containerd_sock": containerd.sock,
                "containerd_namespace": CRI_NAMESPACE,
                "containerd_content_path": containerd.content_path,
            }
        )
        argv = [self._spegel, "--log-level=ERROR", "registry", *flags]
        process = node.netns.start(f"Spegel on {node.name}", argv, log_path=home / "log")
        stack.callback(process.stop)
        return process


def measure(options: argparse.Namespace, ways: Sequence[str], say: Callable[[str], None]) -> dict[str, Figures]:
    """The figures of each way. Raises Failed."""
    found = {way: Figures() for way in ways}
    with (
        tempfile.TemporaryDirectory(prefix="spegel-pull-") as name,
        Cluster(3, consul=False, containerd=[None, "21", "21"]) as lab,
    ):
        say("making and pushing an image")
        image = images.build(Path(name), f"example.com/{_REPOSITORY}:v1", options.image)
        bench = Bench(lab, image, options.spegel, options.at_once)
        say("a first turn that does not count")
        bench.turn(ways[0], Figures())
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
        try:
            for number in range(options.turns):
                for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                    say(f"turn {number + 1}: {way}")
                    bench.turn(way, found[way])
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
    return found


def _cpu(pids: Sequence[int]) -> float:
    return sum(map(proc.cpu_seconds, pids))


def main() -> int:
    """The exit status: 2 if it could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.pull", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spegel", type=Path, metavar="PATH", help="a Spegel binary to compare with")
    parser.add_argument("--image", type=layers, default="4x255MiB", metavar="LAYERS", help="(default: 4x255MiB)")
    parser.add_argument("--turns", type=int, default=3, metavar="T", help="turns of each way (default: 3)")
    parser.add_argument("--busy", type=int, default=0, metavar="B", help="processes that compute meanwhile")
    parser.add_argument("--at-once", type=int, default=0, metavar="N", help="download the layers alone, N at once")
    parser.add_argument("--keep", action="store_true", help="keep the figures in bench/beside.json")
    options = parser.parse_args()
    if options.at_once and not options.spegel:
        parser.error("--at-once has nothing to compare with: give --spegel")
    ways = [DEFAULT, "auto", "off", *([SPEGEL] if options.spegel else []), *([] if options.at_once else [UPSTREAM])]
    console, began = Console(width=120, highlight=False), time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:4.0f} s  {text}", style="dim")

    try:
        parts.check()
        found = measure(options, ways, say)
    except (Failed, RuntimeError) as exc:
        print(f"bench.pull: {exc}", file=sys.stderr)
        return 2
    base = SPEGEL if options.spegel else UPSTREAM
    what = f"Downloads, {options.at_once} at once," if options.at_once else "A pull"
    title = f"{what} of {sum(options.image) >> 20} MiB in {len(options.image)} layers, {options.busy} busy processes"
    table = Table(title=f"{title}; load {os.getloadavg()[0]:.1f}", title_justify="left", pad_edge=False)
    for column in ("way", "seconds", f"x {base}", "CPU of both, s", f"x {base}", "seconds of each turn"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for way in ways:
        seconds, cpu = (statistics.median(each) for each in (found[way].seconds, found[way].cpu))
        times, paid = (statistics.median(each) for each in (found[base].seconds, found[base].cpu))
        ratio = f"{cpu / paid:.2f}" if paid else "-"
        each = " ".join(f"{one:.2f}" for one in found[way].seconds)
        table.add_row(way, f"{seconds:.2f}", f"{seconds / times:.2f}", f"{cpu:.2f}", ratio, each)
    console.print(table)
    if options.keep:
        name = f"{sum(options.image) >> 20} MiB in {len(options.image)} layers"
        name += f", {options.at_once} at once without a runtime" if options.at_once else ""
        name += f", {options.busy} busy processes beside it" if options.busy else ""
        kept = [
            beside.Way(way, statistics.median(found[way].seconds), statistics.median(found[way].cpu)) for way in ways
        ]
        beside.keep(beside.PULL, name, kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
