"""Measure a miss: the request of a runtime for content that no node has, which ends with 404.

    python -m bench.ring.miss --nodes 6 [--busy 2] [--spegel PATH --containerd PATH]

Each ring is N sidecars as N processes, and with --spegel one more ring of N Spegel nodes (a containerd of their own
has no content).  The rings are measured by turns, one request at a time at one node.  The CPU is that of all nodes of
the ring during the turn, without what the ring costs while it is idle, which is measured before.

Each node has a network namespace of its own behind one bridge, because Spegel announces no loopback address, and
go-libp2p accepts eight connections from one address.  So it needs root.  All namespaces share one limit of neighbours
(gc_thresh3 of arp(7), 1024 by default), which is raised meanwhile: three rings of 25 nodes have 1,800.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table

from bench import beside
from bench.empty_containerd import containerd, end, started
from bench.proc import cpu_seconds

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_READY, _SETTLED = 240.0, 15.0  # seconds
_PAUSE = 0.01
_JOINED_THROUGH = 3  # nodes of Spegel's ring
_MOST_RINGS = 8
_BRIDGE = "10.213.0.254"
_WARM = 60


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ring.miss", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=6, metavar="N", help="members of each ring (default: 6)")
    parser.add_argument("--requests", type=int, default=200, metavar="R", help="requests of one turn (default: 200)")
    parser.add_argument("--turns", type=int, default=3, metavar="T", help="turns of each ring (default: 3)")
    parser.add_argument(
        "--busy", type=int, default=0, metavar="B", help="processes that compute meanwhile (default: 0)"
    )
    parser.add_argument("--manifests", action="store_true", help="ask for manifests instead of blobs")
    parser.add_argument("--tree", action="append", metavar="PATH", help="another source tree to measure as well")
    parser.add_argument("--spegel", metavar="PATH", help="a Spegel later than 0.7.4 to compare with")
    parser.add_argument("--containerd", metavar="PATH", help="the containerd that Spegel asks")
    parser.add_argument("--keep", action="store_true", help="keep the figures in bench/beside.json")
    options = parser.parse_args()
    if not 1 <= options.nodes <= 100:
        parser.error("--nodes must be 1 to 100")
    if options.spegel and not options.containerd:
        parser.error("--spegel needs --containerd, because Spegel does not start without one")
    if options.keep and options.tree:
        parser.error("--keep tells of one tree, so --tree can't be given with it")
    with _room_for_neighbours(_MOST_RINGS * options.nodes**2):
        if _libc.unshare(_CLONE_NEWNET):
            parser.error("a network namespace can't be made: this needs root")
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    for arguments in (
        "link set lo up",
        "link add nodes type bridge",
        f"addr add {_BRIDGE}/16 dev nodes",
        "link set nodes up",
    ):
        _ip(arguments)
    kind = "manifests" if options.manifests else "blobs"
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="miss-")))
        rings = []
        trees = [str(Path(__file__).resolve().parent.parent.parent), *(options.tree or [])]
        for tree in trees:
            for follow in ("off", "on"):
                name = f"follow {follow}" + (f", {Path(tree).name}" if len(trees) > 1 else "")
                rings.append(_Ring(name, len(rings) + 1, options.nodes, home))
                stack.callback(rings[-1].stop)
                rings[-1].start_sidecars(tree, follow)
        for ring in rings:
            ring.wait_ready()  # a node of Spegel that has too little time to join tries again only much later
        if options.spegel:
            socket = stack.enter_context(containerd(options.containerd, home / "ctrd"))
            rings.append(_Ring("Spegel", len(rings) + 1, options.nodes, home))
            stack.callback(rings[-1].stop)
            stack.enter_context(rings[-1].serve_bootstrap())
            rings[-1].start_spegel(options.spegel, socket)
            rings[-1].wait_ready()
        time.sleep(max(_SETTLED, options.nodes))
        for ring in rings:
            ring.ask(kind, _WARM)
        for ring in rings:
            ring.measure_idle()
        for _ in range(options.busy):
            stack.callback(partial(end, started([sys.executable, "-c", "while True: pass"])))
        for _ in range(options.turns):
            for ring in rings:
                ring.turn(kind, options.requests)
    _print(rings, f"A miss in a ring of {options.nodes}, {options.busy} busy processes, {kind}")
    if options.keep:
        ways = [beside.Way(ring.name, ring.percentile(0.5), statistics.median(ring.cpu)) for ring in rings]
        beside.keep(beside.MISS, _kept_name(options.nodes, options.busy, kind), ways)


def _kept_name(nodes: int, busy: int, kind: str) -> str:
    """What the figures are of, so that they replace only those of the same."""
    beside_it = f", {busy} busy processes beside it" if busy else ""
    return f"{nodes} nodes{beside_it}" + (f", {kind}" if kind != "blobs" else "")


@contextmanager
def _room_for_neighbours(most: int) -> Iterator[None]:
    """Let the kernel know ``most`` neighbours in all namespaces together, if this process may change the limits."""
    with ExitStack() as stack:
        with suppress(OSError):
            for limit in sorted(Path("/proc/sys/net/ipv4/neigh/default").glob("gc_thresh?"), reverse=True):
                # opened once, because the path names nothing in another namespace
                file = stack.enter_context(limit.open("r+b", buffering=0))
                before = file.read()
                if int(before) < most:
                    os.pwrite(file.fileno(), b"%d" % most, 0)
                    stack.callback(os.pwrite, file.fileno(), before, 0)
        yield


@dataclass
class _Ring:
    name: str
    number: int
    nodes: int
    home: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    times: list[list[float]] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    idle: float = 0.0

    def address(self, node: int) -> str:
        return f"10.213.{self.number}.{node + 1}"

    def start_sidecars(self, tree: str, follow: str) -> None:
        for node in range(self.nodes):
            ip, home = self.address(node), self.home / f"{self.number}-{node}"
            layout = home / "layout"
            (layout / "blobs/sha256").mkdir(parents=True)
            (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
            (layout / "index.json").write_text('{"schemaVersion":2,"manifests":[]}')
            command = [f"{tree}/.venv/bin/spegel-consul", "registry", "--skip-preflight", "--hang-timeout=0"]
            command += [f"--layout-path={layout}", f"--registry-addr={ip}:5000", f"--router-addr={ip}:5001"]
            command += [f"--metrics-addr={ip}:9090", "--bootstrap-kind=static", f"--data-dir={home}/data"]
            command += [f"--static-bootstrap-peers=/ip4/{self.address(0)}/tcp/5001", f"--follow={follow}"]
            command += [f"--node-name=n{node}", "--log-level=error"]
            self._start(command)

    def start_spegel(self, binary: str, socket: Path) -> None:
        for node in range(self.nodes):
            ip, home = self.address(node), self.home / f"{self.number}-{node}"
            home.mkdir()
            command = [binary, "--log-level=ERROR", "registry", "--bootstrap-kind=http"]
            command += [f"--http-bootstrap-url=http://{_BRIDGE}:{8000 + self.number}/id", f"--data-dir={home}"]
            command += [f"--registry-addr={ip}:5000", f"--router-addr={ip}:5001", f"--metrics-addr={ip}:9090"]
            command += [f"--containerd-sock={socket}", f"--containerd-content-path={home}"]
            self._start(command)
            # those that others join through are there first, because a node that fails to join tries again only later
            if node == _JOINED_THROUGH - 1:
                self.wait_ready()

    def _start(self, command: Sequence[str]) -> None:
        """Start the next node in a namespace of its own, which exists as long as the node."""
        ip, outside = self.address(len(self.processes)), f"r{self.number}n{len(self.processes)}"
        process = started(["unshare", "--net", "sh", "-c", 'read -r go; exec "$@"', "sh", *command], subprocess.PIPE)
        self.processes.append(process)
        while _namespace(process.pid).samefile(_namespace("self")):
            time.sleep(0.01)
        _ip(f"link add {outside} type veth peer name eth0 netns {process.pid}")
        _ip(f"link set {outside} master nodes up")
        with _inside(process):
            for arguments in ("link set lo up", f"addr add {ip}/16 dev eth0", "link set eth0 up"):
                _ip(arguments)
        if process.stdin is not None:
            with process.stdin:
                process.stdin.write(b"\n")

    @contextmanager
    def serve_bootstrap(self) -> Iterator[None]:
        """The list of bootstrap peers that Spegel asks for."""
        peers = [
            {"ID": "", "Addrs": [f"/ip4/{self.address(node)}/tcp/5001"]}
            for node in range(min(_JOINED_THROUGH, self.nodes))
        ]
        body = json.dumps(peers).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer((_BRIDGE, 8000 + self.number), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()

    def wait_ready(self) -> None:
        until = time.monotonic() + _READY
        for node in range(len(self.processes)):
            while not self._is_ready(node):
                process, why = self.processes[node], ""
                if process.poll() is not None:
                    why = f"exited with {process.returncode}: start it by hand to see why"
                elif time.monotonic() > until:
                    why = f"is not ready after {_READY:g} s"
                if why:
                    raise SystemExit(f"node {node} of {self.name} {why}\n{process.args!r}")
                time.sleep(0.2)

    def _is_ready(self, node: int) -> bool:
        try:
            connection = http.client.HTTPConnection(self.address(node), 5000, timeout=5)
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def ask(self, kind: str, count: int) -> list[float]:
        """Milliseconds of each of ``count`` misses at one node, asked from there as its runtime does."""
        connection = http.client.HTTPConnection(self.address(self.nodes // 2), 5000, timeout=30)
        with _inside(self.processes[self.nodes // 2]):
            connection.connect()
        took = []
        for _ in range(count):
            digest = hashlib.sha256(random.randbytes(32)).hexdigest()
            target = f"/v2/library/x/{kind}/sha256:{digest}?ns=docker.io"
            start = time.perf_counter()
            connection.request("GET", target, headers={"User-Agent": "containerd/2"})
            response = connection.getresponse()
            response.read()
            took.append(1e3 * (time.perf_counter() - start))
            if response.status != 404:
                raise SystemExit(f"{self.name} answered {response.status} instead of 404")
            time.sleep(_PAUSE)
        return took

    def measure_idle(self) -> None:
        start, before = time.monotonic(), self._cpu()
        time.sleep(3)
        self.idle = (self._cpu() - before) / (time.monotonic() - start)

    def turn(self, kind: str, count: int) -> None:
        start, before = time.monotonic(), self._cpu()
        self.times.append(sorted(self.ask(kind, count)))
        used = self._cpu() - before - self.idle * (time.monotonic() - start)
        self.cpu.append(1e3 * used / count)

    def _cpu(self) -> float:
        return sum(cpu_seconds(process.pid) for process in self.processes)

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            end(process)

    def percentile(self, share: float) -> float:
        """Milliseconds: the median over the turns."""
        return statistics.median(turn[min(len(turn) - 1, int(len(turn) * share))] for turn in self.times)


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


@contextmanager
def _inside(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """In the network namespace of ``process``: sockets that are made here, and programs that are started."""
    with _namespace("self").open() as outside, _namespace(process.pid).open() as inside:
        _enter(inside)
        try:
            yield
        finally:
            _enter(outside)


def _namespace(process: int | str) -> Path:
    return Path(f"/proc/{process}/ns/net")


def _enter(namespace: IO[str]) -> None:
    if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "the network namespace can't be entered")


def _print(rings: Sequence[_Ring], title: str) -> None:
    table = Table(title=f"{title}; load {os.getloadavg()[0]:.1f}", title_justify="left", pad_edge=False)
    for column in ("ring", "p50 ms", "p90 ms", "p99 ms", "CPU of all nodes, ms", "idle CPU, %", "p50 of each turn"):
        table.add_column(column, justify="left" if column == "ring" else "right", no_wrap=True)
    for ring in rings:
        p50, p90, p99 = (f"{ring.percentile(share):.2f}" for share in (0.5, 0.9, 0.99))
        each = " ".join(f"{turn[len(turn) // 2]:.2f}" for turn in ring.times)
        table.add_row(ring.name, p50, p90, p99, f"{statistics.median(ring.cpu):.2f}", f"{100 * ring.idle:.1f}", each)
    Console(width=120, highlight=False).print(table)


if __name__ == "__main__":
    main()
