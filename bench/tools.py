# The clients and the Go peer are built when they are needed, into a directory outside of the tree, and again when
# their source changes.  A peer that is missing is left out and said so; without the clients there is no benchmark.

"""Programs that the benchmark needs: what is there, what is built, what is missing."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
_BUILD_TIMEOUT = 300.0


class ToolMissing(Exception):
    """Something that can't be done without; the message says how to install it."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Paths of programs; ``missing`` has one line for each peer that is left out."""

    drain: Path
    probe: Path
    tls_drain: Path | None
    go_peer: Path | None
    go_spegel: Path | None
    containerd: Path | None
    nginx: Path | None
    registry: Path | None
    missing: tuple[str, ...] = field(default=())


def cache_dir() -> Path:
    """Where built programs and content are kept by default."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "spegel-consul-bench"


def find(cache: Path) -> Tools:
    """Find and build everything. Raises ToolMissing if the clients can't be built."""
    missing = []
    go = _which("go", "/usr/local/go/bin/go")
    go_peer = None
    if go is None:
        missing.append("go: no Go peer, and so no ratio to it (apt-get install golang-go)")
    else:
        try:
            go_peer = built(cache, HERE / "peers/peer.go", [str(go), "build"], GO111MODULE="off", CGO_ENABLED="0")
        except ToolMissing as exc:
            missing.append(f"go: the Go peer is left out: {exc}")
    containerd, gocode = _containerd(), _gocode()
    go_spegel = None
    if go is None or containerd is None or gocode is None:
        missing.append(
            "go+containerd: no Go peer that asks containerd as Spegel does (apt-get install golang-go containerd"
            " golang-github-containerd-containerd-dev golang-github-prometheus-client-golang-dev)"
        )
    else:
        try:
            source, environment = HERE / "peers/spegel.go", {"GO111MODULE": "off", "GOPATH": str(gocode)}
            go_spegel = built(cache, source, [str(go), "build"], CGO_ENABLED="0", **environment)
        except ToolMissing as exc:
            missing.append(f"go+containerd: left out: {exc}")
    nginx = _which("nginx", "/usr/sbin/nginx")
    if nginx is None:
        missing.append("nginx: no nginx peer, and no source for mirrored content (apt-get install nginx-light)")
    registry = _which("docker-registry", "/usr/bin/docker-registry") or _which("registry")
    if registry is None:
        missing.append("docker-registry: left out (apt-get install docker-registry)")
    compiler = _which("cc") or _which("gcc") or _which("clang")
    if compiler is None:
        raise ToolMissing("no C compiler for the client that asks (apt-get install gcc libc6-dev)")
    compile_ = [str(compiler), "-O2"]
    tls_drain = None
    try:
        tls_drain = built(cache, HERE / "client/tls_drain.c", [*compile_, "-Wl,--no-as-needed", "-lssl", "-lcrypto"])
    except ToolMissing as exc:
        missing.append(f"no client for TLS, so nothing is measured over TLS (apt-get install libssl-dev): {exc}")
    return Tools(
        built(cache, HERE / "client/drain.c", compile_),
        built(cache, HERE / "client/probe.c", compile_),
        tls_drain,
        go_peer,
        go_spegel,
        containerd,
        nginx,
        registry,
        tuple(missing),
    )


def versions(tools: Tools) -> dict[str, str]:
    """What the peers say that they are."""
    found = {}
    go = _which("go", "/usr/local/go/bin/go")
    for name, command in (
        ("nginx", tools.nginx and [str(tools.nginx), "-v"]),
        ("docker-registry", tools.registry and [str(tools.registry), "--version"]),
        ("go", tools.go_peer and [str(go), "version"]),
    ):
        if command:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
            found[name] = (done.stdout or done.stderr).strip().partition("\n")[0]
    return found


def _containerd() -> Path | None:
    """The one on PATH, or the one that the tests use."""
    parts = os.environ.get("SPEGEL_REAL_PARTS")
    return _which("containerd", *([f"{parts}/ctrd16/usr/bin/containerd"] if parts else []))


def _gocode() -> Path | None:
    """The GOPATH that has containerd's Go client; Debian's packages are in /usr/share/gocode."""
    places = [*filter(None, os.environ.get("GOPATH", "").split(":")), "/usr/share/gocode"]
    return next((Path(p) for p in places if Path(p, "src/github.com/containerd/containerd/client.go").exists()), None)


def _which(name: str, *paths: str) -> Path | None:
    found = shutil.which(name) or next((path for path in paths if os.access(path, os.X_OK)), None)
    return Path(found) if found else None


def built(cache: Path, source: Path, command: list[str], **environment: str) -> Path:
    """``source`` compiled by ``command``, if need be. Raises ToolMissing."""
    mark = hashlib.sha256("\0".join(command).encode() + source.read_bytes()).hexdigest()[:12]
    target = cache / "bin" / f"{source.stem}-{mark}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(".new")
        environment = {**os.environ, "GOCACHE": str(cache / "go"), **environment}
        done = subprocess.run(
            [*command, "-o", str(draft), str(source)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=_BUILD_TIMEOUT,
        )
        if done.returncode != 0:
            raise ToolMissing(f"{source.name} can't be built: {done.stderr.strip()[:500]}")
        draft.replace(target)
    return target
