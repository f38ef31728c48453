# A whole sidecar is started as a node starts it, with its guard, and looked at from outside.  A second one with the
# probe inside (bench.memory_probe) says what the memory is for.  The peers are the bare ring nodes of bench.ring.

"""Where the sidecar's memory is: idle, with many keys, and with many peers.

``--tree`` measures the sidecar of another checkout by the same script.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import proc
from bench.empty_containerd import containerd
from bench.process import get_status
from bench.ring.fleet import Fleet, each

_PORTS = 15900
_SETTLE = 12.0  # seconds, after which the sidecar has given free memory back
_PATIENCE = 60.0
_OCI = "application/vnd.oci.image"
_MANIFEST = f"{_OCI}.manifest.v1+json"
_KINDS = {  # of a mapping's name, the first that matches
    "malloc heap": r"\[heap\]",
    "stack of the main thread": r"\[stack\]",
    "extension modules and libraries": r".*\.so",
    "other files": r"/",
    "pymalloc, mapped memory, stacks of threads": r"",
}


@dataclass(frozen=True, slots=True)
class Total:
    """MiB of one process."""

    rss: float
    dirty: float

    def __add__(self, other: Total) -> Total:
        return Total(self.rss + other.rss, self.dirty + other.dirty)


@dataclass(frozen=True, slots=True)
class Setup:
    """How many blobs the node has, and how many peers with how many keys each."""

    keys: int
    peers: int
    keys_of_peers: int = 100
    containerd: str = ""
    """The containerd whose content is served, instead of a layout."""

    def __str__(self) -> str:
        store = ", containerd" if self.containerd else ""
        return ("idle" if not self.keys and not self.peers else f"{self.keys} keys, {self.peers} peers") + store


def parse_maps(smaps: str) -> dict[str, Total]:
    """Resident and private dirty MiB of each kind of mapping in a /proc/PID/smaps."""
    kib: dict[str, list[int]] = {kind: [0, 0] for kind in _KINDS}
    kind = ""
    for line in smaps.splitlines():
        head = re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+\s*(.*)", line)
        if head:
            kind = next(kind for kind, pattern in _KINDS.items() if re.match(pattern, head[1]))
        elif line.startswith("Rss:"):
            kib[kind][0] += int(line.split()[1])
        elif line.startswith("Private_Dirty:"):
            kib[kind][1] += int(line.split()[1])
    return {kind: Total(rss / 1024, dirty / 1024) for kind, (rss, dirty) in kib.items()}


def total(pid: int) -> Total:
    """Of one process, from its smaps."""
    maps = parse_maps(Path(f"/proc/{pid}/smaps").read_text())
    return sum(maps.values(), Total(0.0, 0.0))


def write_layout(directory: Path, keys: int) -> None:
    """An OCI image layout with ``keys`` blobs: images of a manifest, a configuration and two layers."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(body: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(body).hexdigest()
        (blobs / digest).write_bytes(body)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(body)}

    manifests = []
    for number in range(keys // 4):
        layers = [blob(f"layer {number} {which}".encode(), "application/vnd.oci.image.layer.v1.tar") for which in "ab"]
        config = blob(
            json.dumps({"os": "linux", "number": number}).encode(), "application/vnd.oci.image.config.v1+json"
        )
        manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": layers}
        name = {"io.containerd.image.name": f"docker.io/library/image{number}:v1"}
        manifests.append(blob(json.dumps(manifest).encode(), _MANIFEST) | {"annotations": name})
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))


@contextmanager
def sidecar(
    command: Sequence[str], tree: Path, directory: Path, setup: Setup, bootstrap: str
) -> Iterator[tuple[int, int]]:
    """A sidecar of ``tree`` that is ready and has settled: the pids of its guard and of itself."""
    write_layout(directory / "layout", setup.keys)
    with ExitStack() as stack:
        source = ["--layout-path", str(directory / "layout")]
        if setup.containerd:
            socket = stack.enter_context(containerd(setup.containerd, directory / "c"))
            if setup.keys:
                import_layout(Path(setup.containerd).with_name("ctr"), socket, directory / "layout")
            source = ["--containerd-sock", str(socket), "--containerd-namespace", "k8s.io"]
            source += ["--containerd-content-path", str(socket.parent / "root/io.containerd.content.v1.content")]
        yield from _ready([*command, "registry", *source], tree, directory, setup, bootstrap)


def import_layout(ctr: Path, socket: Path, layout: Path) -> None:
    """Put the images of ``layout`` into containerd, as they are."""
    archive = layout.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(layout, ".")
    words = ["-a", str(socket), "-n", "k8s.io", "images", "import", "--no-unpack", "--local", str(archive)]
    subprocess.run([str(ctr), *words], check=True, stdout=subprocess.DEVNULL)


def _ready(
    command: Sequence[str], tree: Path, directory: Path, setup: Setup, bootstrap: str
) -> Iterator[tuple[int, int]]:
    words = [*command, "--data-dir", str(directory / "data")]
    for number, kind in enumerate(("registry", "router", "metrics")):
        words += [f"--{kind}-addr", f"127.0.0.1:{_PORTS + number}"]
    words += ["--bootstrap-kind", "static", "--static-bootstrap-peers", bootstrap, "--skip-preflight"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=tree)
    try:
        until = time.monotonic() + _PATIENCE
        while get_status(_PORTS, "/readyz") != 200:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the sidecar is not ready: {(directory / 'log').read_text()[-500:]}")
            time.sleep(0.05)
        time.sleep(_SETTLE + setup.keys / 400)
        guard, own = proc.tree(process.pid)[:2]
        yield guard, own
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def measure(tree: Path, setup: Setup) -> None:
    """Print the tables of one set-up."""
    with tempfile.TemporaryDirectory(prefix="spegel-memory-") as name, Fleet(setup.peers) as fleet:
        directory, members = Path(name), fleet.members
        if members:
            each(members[1:], "join", [members[0].addr])
            for number, member in enumerate(members):
                member.ask("announce", f"peer{number}-", setup.keys_of_peers, 20.0)
        bootstrap = members[0].addr if members else f"/ip4/127.0.0.1/tcp/{_PORTS + 1}"
        (directory / "plain").mkdir()
        with sidecar([sys.executable, "-m", "spegel_consul"], tree, directory / "plain", setup, bootstrap) as (
            guard,
            own,
        ):
            both = total(guard) + total(own)
            print(f"\n{setup}: sidecar and guard {both.rss:.1f} MiB resident, {both.dirty:.1f} private dirty")
            _row("guard", total(guard))
            threads = len(list(Path(f"/proc/{own}/task").iterdir()))
            _row(f"sidecar, with {threads} threads", total(own))
            for kind, part in parse_maps(Path(f"/proc/{own}/smaps").read_text()).items():
                _row(f"  {kind}", part)
        (directory / "probed").mkdir()
        out = directory / "figures"
        probed = [sys.executable, str(Path(__file__).with_name("memory_probe.py")), str(out)]
        with sidecar(probed, tree, directory / "probed", setup, bootstrap) as (_, own):
            os.kill(own, signal.SIGUSR2)
            until = time.monotonic() + _PATIENCE
            while not out.exists() and time.monotonic() < until:
                time.sleep(0.1)
            _print(json.loads(out.read_text()))


def _row(what: str, part: Total) -> None:
    print(f"  {what:48} {part.rss:7.1f} {part.dirty:7.1f}")


def _print(found: dict[str, Any]) -> None:
    print(f"  inside: {found['blocks']} blocks of pymalloc; KiB of the heap: {found['heap used']} used,", end=" ")
    print(f"{found['heap free']} free, {found['heap mapped']} mapped; malloc_trim gave back {found['trimmed']} KiB")
    print(f"  a collection found {found['collected']} objects; {found['frozen']} are frozen")
    print("  KiB by kind:", ", ".join(f"{kind} {kib}" for kind, kib in Counter(found["kinds"]).most_common()))
    print("  objects:", ", ".join(f"{name} {count}" for name, count in found["objects"]))
    print("  MiB by import (modules):", end=" ")
    modules = found["modules"]
    print(", ".join(f"{name} {kib / 1024:.1f} ({modules.get(name, 0)})" for name, kib in found["imports"][:30]))


def main() -> None:
    """Measure the set-ups one after the other."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--tree", type=Path, default=here, help="checkout with the sidecar (default: this one)")
    parser.add_argument("--keys", type=int, default=2000, help="blobs of the node (default: 2000)")
    parser.add_argument("--peers", type=int, default=20, help="members of the ring (default: 20)")
    parser.add_argument("--containerd", default="", metavar="PATH", help="also with the content of this containerd")
    options = parser.parse_args()
    setups = [Setup(0, 0), Setup(options.keys, 0), Setup(0, options.peers), Setup(options.keys, options.peers)]
    if options.containerd:
        setups += [replace(setup, containerd=options.containerd) for setup in setups]
    for setup in setups:
        measure(options.tree, setup)


if __name__ == "__main__":
    main()
