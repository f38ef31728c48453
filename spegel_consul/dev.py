# A cluster on one machine, for people who want to see the thing work before they install it.
#
# The nodes are the real sidecar in processes of its own, and Consul, if there is one on PATH, is a real
# agent; only the store is an OCI layout instead of a containerd.  The first node has an image that this
# module made; it is pulled through the second, which can have got it from a neighbour only.

"""``spegel-consul dev``: three nodes on loopback, and a pull from one to another."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import trio
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_CONFIG, OCI_MANIFEST

IMAGE = "registry.example.com/demo/hello:v1"
NODES = 3
_LOOPBACK = "127.0.0.1"
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 15.0
_TAR = "application/vnd.oci.image.layer.v1.tar"


class DevError(Exception):
    """The demonstration can't go on; the message says why."""


@dataclass(frozen=True, slots=True)
class _Node:
    number: int
    registry: str
    router: str
    metrics: str
    home: Path

    @property
    def log(self) -> Path:
        return self.home / "log"


@dataclass(frozen=True, slots=True)
class _Piece:
    """One thing that was pulled, and who served it; ``seconds`` is the time from request to last byte."""

    what: str
    digest: Digest
    size: int
    served_by: str
    seconds: float


async def run(once: bool, port: int, size: int) -> int:
    """Show it; returns the exit status. ``port`` is the first of the ports used, ``size`` MiB of layers."""
    console = Console(stderr=False, highlight=False, soft_wrap=True)
    home = Path(tempfile.mkdtemp(prefix="spegel-dev-"))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_signal, nursery.cancel_scope)
            try:
                status = await _show(console, home, once, port, size)
            except (DevError, OSError, httpx.HTTPError, ExceptionGroup) as exc:
                first = _leaf(exc)
                console.print(f"failed: {escape(str(first) or repr(first))}")
                status = 1
            nursery.cancel_scope.cancel()
            return status
        console.print("stopped")
        return 1 if once else 0
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _leaf(exc: Exception) -> Exception:
    while isinstance(exc, ExceptionGroup):
        exc = exc.exceptions[0]
    return exc


async def _until_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def _show(console: Console, home: Path, once: bool, port: int, size: int) -> int:
    nodes = [
        _Node(
            number,
            f"{_LOOPBACK}:{port + 10 * number}",
            f"{_LOOPBACK}:{port + 10 * number + 1}",
            f"{_LOOPBACK}:{port + 10 * number + 2}",
            home / f"node{number}",
        )
        for number in range(NODES)
    ]
    for node in nodes:
        (node.home / "layout").mkdir(parents=True)
        _write_layout(node.home / "layout", [])
    _write_image(nodes[0].home / "layout", size << 20)
    async with _consul(console, home) as consul:
        console.print(f"starting {NODES} nodes; only node 1 has the image [bold]{IMAGE}[/] ({size} MiB)")
        async with _sidecars(nodes, consul):
            async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
                for node in nodes:
                    await _ready(client, node)
                pieces = await _pull(console, client, nodes[1])
            neighbours = {node.registry for node in nodes} - {nodes[1].registry}
            own = [piece for piece in pieces if piece.served_by not in neighbours]
            _report(console, pieces, nodes, consul)
            if once or own:
                total, seconds = sum(p.size for p in pieces), sum(p.seconds for p in pieces)
                if own:
                    console.print(f"failed: {len(own)} of {len(pieces)} pieces did not come from a neighbour")
                    return 1
                came_from = ", ".join(sorted({piece.served_by for piece in pieces}))
                console.print(
                    f"ok: {len(pieces)} of {len(pieces)} pieces, {total / (1 << 20):.1f} MiB, came from a neighbour "
                    f"({came_from}) in {seconds:.2f} s, {total / (1 << 20) / seconds:.0f} MiB/s"
                )
                return 0
            console.print("\nrunning until Ctrl-C")
            await trio.sleep_forever()
    return 0


def _report(console: Console, pieces: Sequence[_Piece], nodes: Sequence[_Node], consul: str | None) -> None:
    names = {node.registry: f"node {node.number + 1}" for node in nodes}
    table = Table(title=f"{IMAGE} pulled through node 2")
    for column in ("piece", "digest", "bytes", "served by", "ms"):
        table.add_column(column, justify="right" if column in ("bytes", "ms") else "left")
    for piece in pieces:
        served_by = f"{names.get(piece.served_by, '?')} ({piece.served_by})"
        table.add_row(piece.what, piece.digest[:19] + "…", f"{piece.size:,}", served_by, f"{piece.seconds * 1000:.1f}")
    console.print(table)
    for node in nodes:
        console.print(
            f"node {node.number + 1}   registry http://{node.registry}/v2/   ready http://{node.registry}/readyz   "
            f"metrics http://{node.metrics}/metrics"
        )
    reference = IMAGE.split("/", 1)[1].replace(":", "/manifests/")
    console.print(f"try     curl -s 'http://{nodes[2].registry}/v2/{reference}?ns={IMAGE.split('/', 1)[0]}'")
    if consul is not None:
        console.print(f"leader  CONSUL_HTTP_ADDR={consul} consul kv get spegel/leader")


async def _pull(console: Console, client: httpx.AsyncClient, node: _Node) -> list[_Piece]:
    registry, _, rest = IMAGE.partition("/")
    repository, _, tag = rest.partition(":")
    base = f"http://{node.registry}/v2/{repository}"
    pieces: list[_Piece] = []

    async def fetch(what: str, url: str, digest: Digest | None, size: int, progress: Progress) -> bytes:
        started = time.perf_counter()
        task = progress.add_task(what, total=size or None)
        kept = b""
        async with client.stream("GET", url, params={"ns": registry}) as response:
            if response.status_code != 200:
                raise DevError(f"{url} answered {response.status_code}: {(await response.aread()).decode()[:300]}")
            expected = digest or Digest(response.headers["docker-content-digest"])
            hasher, received = expected.hasher(), 0
            async for chunk in response.aiter_raw():
                hasher.update(chunk)
                received += len(chunk)
                kept = kept + chunk if received < 1 << 20 else b""
                progress.update(task, completed=received)
        if hasher.hexdigest() != expected.encoded:
            raise DevError(f"{what}: the bytes do not have digest {expected}")
        served_by = response.headers.get("x-spegel-served-by", "")
        pieces.append(_Piece(what, expected, received, served_by, time.perf_counter() - started))
        return kept

    await _until_found(client, f"{base}/manifests/{tag}?ns={registry}")
    columns = (TextColumn("{task.description:>10}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as progress:
        manifest = json.loads(await fetch("manifest", f"{base}/manifests/{tag}", None, 0, progress))
        for what, part in (
            ("config", manifest["config"]),
            *((f"layer {i + 1}", layer) for i, layer in enumerate(manifest["layers"])),
        ):
            digest = Digest(part["digest"])
            await fetch(what, f"{base}/blobs/{digest}", digest, part["size"], progress)
    return pieces


async def _until_found(client: httpx.AsyncClient, url: str) -> None:
    """The ring forms within a second or two after the last node is ready."""
    with trio.move_on_after(_START_TIMEOUT):
        while (await client.head(url)).status_code != 200:
            await trio.sleep(0.1)
        return
    raise DevError(f"no neighbour offered the image within {_START_TIMEOUT:g} s")


async def _ready(client: httpx.AsyncClient, node: _Node) -> None:
    reason = "no answer"
    with trio.move_on_after(_START_TIMEOUT):
        while True:
            try:
                response = await client.get(f"http://{node.registry}/readyz")
            except httpx.TransportError as exc:
                reason = str(exc) or repr(exc)
            else:
                if response.status_code == 200:
                    return
                reason = response.text.strip()
            await trio.sleep(0.05)
    raise DevError(f"node {node.number + 1} is not ready after {_START_TIMEOUT:g} s: {reason}")


@asynccontextmanager
async def _sidecars(nodes: Sequence[_Node], consul: str | None) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        stopping = trio.Event()

        async def watch(node: _Node, process: trio.Process) -> None:
            await process.wait()
            if not stopping.is_set():
                tail = "\n".join(node.log.read_text(errors="replace").splitlines()[-5:])
                raise DevError(f"node {node.number + 1} exited with {process.returncode}:\n{tail}")

        processes: list[trio.Process] = []
        try:
            for node in nodes:
                process = await _start(_command(node, nodes[0], consul), node.log, consul)
                processes.append(process)
                nursery.start_soon(watch, node, process)
            yield
        finally:
            stopping.set()
            with trio.CancelScope(shield=True):
                await _stop(processes)
            nursery.cancel_scope.cancel()


def _command(node: _Node, first: _Node, consul: str | None) -> list[str]:
    flags = {
        "registry-addr": node.registry,
        "router-addr": node.router,
        "metrics-addr": node.metrics,
        "advertise-addr": _LOOPBACK,
        "node-name": f"dev-{node.number + 1}",
        "data-dir": str(node.home / "data"),
        "store": "layout",
        "layout-path": str(node.home / "layout"),
        "bootstrap-kind": "consul" if consul else "static",
    }
    if consul is None:
        flags["static-bootstrap-peers"] = first.router
    return [sys.executable, "-m", "spegel_consul", "registry", *(f"--{name}={value}" for name, value in flags.items())]


async def _start(command: Sequence[str], log: Path, consul: str | None) -> trio.Process:
    environment = dict(os.environ)
    if consul is not None:
        environment["CONSUL_HTTP_ADDR"] = consul
    # a session of its own: Ctrl-C is for us, and we stop the nodes in order
    with log.open("wb") as out:
        return await trio.lowlevel.open_process(
            list(command), stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


async def _stop(processes: Sequence[trio.Process]) -> None:
    for process in processes:
        if process.returncode is None:
            process.terminate()
    with trio.move_on_after(_STOP_TIMEOUT):
        for process in processes:
            await process.wait()
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def _consul(console: Console, home: Path) -> AsyncIterator[str | None]:
    """The HTTP address of an agent of our own, or None if there is no ``consul`` on PATH."""
    binary = shutil.which("consul")
    if binary is None:
        console.print("no consul on PATH: the nodes find each other through node 1 (static bootstrap)")
        yield None
        return
    http, dns, server, serf_lan, serf_wan = _free_ports(5)
    address = f"{_LOOPBACK}:{http}"
    command = [binary, "agent", "-dev", "-node=dev", f"-bind={_LOOPBACK}", f"-client={_LOOPBACK}"]
    command += [f"-http-port={http}", f"-dns-port={dns}", f"-server-port={server}", "-grpc-port=-1"]
    command += [f"-serf-lan-port={serf_lan}", f"-serf-wan-port={serf_wan}"]
    log = home / "consul.log"
    process = await _start(command, log, None)
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            with trio.move_on_after(_START_TIMEOUT) as scope:
                while not await _has_leader(client, address):
                    if process.poll() is not None:
                        raise DevError(f"consul exited:\n{log.read_text(errors='replace')[-500:]}")
                    await trio.sleep(0.05)
            if scope.cancelled_caught:
                raise DevError(f"consul has no leader after {_START_TIMEOUT:g} s")
        console.print(f"consul agent at http://{address}")
        yield address
    finally:
        with trio.CancelScope(shield=True):
            await _stop([process])


async def _has_leader(client: httpx.AsyncClient, address: str) -> bool:
    try:
        response = await client.get(f"http://{address}/v1/status/leader")
    except httpx.TransportError:
        return False
    return response.status_code == 200 and response.json() != ""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server((_LOOPBACK, 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def _write_image(layout: Path, size: int) -> None:
    """An image of three layers, ``size`` bytes together, that do not compress."""
    layers = []
    for number, share in enumerate((0.1, 0.3, 0.6)):
        data = os.urandom(int(size * share))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            info = tarfile.TarInfo(f"data/{number}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        layers.append(_put(layout, buffer.getvalue(), _TAR))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _put(layout, json.dumps(config).encode(), OCI_CONFIG),
        "layers": layers,
    }
    entry = _put(layout, json.dumps(manifest).encode(), OCI_MANIFEST)
    entry["annotations"] = {"org.opencontainers.image.ref.name": IMAGE}
    _write_layout(layout, [entry])


def _put(layout: Path, content: bytes, media_type: str) -> dict[str, object]:
    digest = Digest.of(content)
    path = layout / "blobs" / digest.algorithm / digest.encoded
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"mediaType": media_type, "digest": str(digest), "size": len(content)}


def _write_layout(layout: Path, manifests: Sequence[dict[str, object]]) -> None:
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": list(manifests)}))
