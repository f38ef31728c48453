"""``spegel-consul dev``: a demonstration with three nodes on loopback, and a pull from one through another.

The nodes are real sidecars in processes of their own, and Consul is a real agent if there is one on PATH. Only the
store is an OCI image layout instead of containerd. The first node has a sample image. It is pulled through the second
node, which can get it only from a peer. The demonstration's steps and output belong here, its processes to
:mod:`spegel_consul.dev.processes`.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import trio
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from spegel_consul.dev import herd
from spegel_consul.dev.processes import (
    START_TIMEOUT,
    DevError,
    Node,
    learn_names,
    make_nodes,
    own_consul,
    plain_client,
    print_pages,
    ready,
    sidecars,
)
from spegel_consul.dev.sample import IMAGE, write_image
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.digest import Digest
from spegel_consul.signals import stop_signals
from spegel_consul.web import formatting

NODES = 3


@dataclass(frozen=True, slots=True)
class _Piece:
    """One pulled manifest or blob; ``seconds``: the time from the request to the last byte."""

    what: str
    digest: Digest
    size: int
    served_by: str
    seconds: float


class _Speed(ProgressColumn):
    """Bytes a second in the units of all other figures; rich's own column has powers of ten."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{formatting.size(int(speed))}/s" if speed else "")


async def run(once: bool, port: int, size: int, cold_start: bool) -> int:
    """Run a demonstration and return the exit status. ``port``: the first of the ports; ``size``: MiB of layers.

    ``cold_start``: that of :mod:`spegel_consul.dev.herd`.
    """
    console = Console(stderr=False, highlight=False, soft_wrap=True)
    home = Path(tempfile.mkdtemp(prefix="spegel-dev-"))
    try:
        # signals are received until the nodes have stopped, because a second one would leave them running
        async with trio.open_nursery() as receiving:
            status = None
            with trio.CancelScope() as demonstration:
                receiving.start_soon(_on_signal, demonstration)
                try:
                    status = await (herd.run if cold_start else _show)(console, home, once, port, size)
                except (DevError, OSError, httpx.HTTPError, ExceptionGroup) as exc:
                    first = _leaf(exc)
                    console.print(f"failed: {escape(str(first) or repr(first))}")
                    status = 1
            receiving.cancel_scope.cancel()
        if status is not None:
            return status
        console.print("stopped")
        return 1 if once else 0
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _leaf(exc: Exception) -> Exception:
    while isinstance(exc, ExceptionGroup):
        exc = exc.exceptions[0]
    return exc


async def _on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(*stop_signals()) as signals:
        async for _ in signals:
            scope.cancel()


async def _show(console: Console, home: Path, once: bool, port: int, size: int) -> int:
    nodes = make_nodes(NODES, home, port)
    write_image(nodes[0].layout, size << 20)
    print_pages(console, nodes[1])
    async with own_consul(console, home) as consul:
        console.print(f"starting {NODES} nodes; only node1 has the image [bold]{IMAGE}[/] ({size} MiB)")
        async with sidecars(nodes, consul):
            async with plain_client() as client:
                for node in nodes:
                    await ready(client, node)
                pieces = await _pull(console, client, nodes[1])
                await learn_names(client, nodes)
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


def _report(console: Console, pieces: Sequence[_Piece], nodes: Sequence[Node], consul: str | None) -> None:
    names = {node.registry: node.name for node in nodes}
    table = Table(title=f"{IMAGE} pulled through node2")
    for column in ("piece", "digest", "bytes", "served by", "ms"):
        table.add_column(column, justify="right" if column in ("bytes", "ms") else "left")
    for piece in pieces:
        served_by = f"{names.get(piece.served_by, '?')} ({piece.served_by})"
        table.add_row(piece.what, piece.digest[:19] + "…", f"{piece.size:,}", served_by, f"{piece.seconds * 1000:.1f}")
    console.print(table)
    for node in nodes:
        console.print(
            f"{node.name}   status page {node.page}   registry http://{node.registry}/v2/   "
            f"metrics http://{node.metrics}/metrics"
        )
    reference = IMAGE.split("/", 1)[1].replace(":", "/manifests/")
    program = sys.argv[0] if sys.argv[0].endswith("spegel-consul") else "spegel-consul"
    console.print(f"try     {program} top --node {nodes[1].metrics}")
    console.print(f"        curl -s 'http://{nodes[2].registry}/v2/{reference}?ns={IMAGE.split('/', 1)[0]}'")
    if consul is not None:
        console.print(f"leader  CONSUL_HTTP_ADDR={consul} consul kv get spegel/leader")


async def _pull(console: Console, client: httpx.AsyncClient, node: Node) -> list[_Piece]:
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
        progress.update(task, total=received)
        if hasher.hexdigest() != expected.encoded:
            raise DevError(f"{what}: the bytes do not have digest {expected}")
        served_by = response.headers.get("x-spegel-served-by", "")
        pieces.append(_Piece(what, expected, received, served_by, time.perf_counter() - started))
        return kept

    await _until_found(client, node)
    columns = (TextColumn("{task.description:>10}"), BarColumn(), DownloadColumn(binary_units=True), _Speed())
    with Progress(*columns, console=console) as progress:
        manifest = json.loads(await fetch("manifest", f"{base}/manifests/{tag}", None, 0, progress))
        for what, part in (
            ("config", manifest["config"]),
            *((f"layer {i + 1}", layer) for i, layer in enumerate(manifest["layers"])),
        ):
            digest = Digest(part["digest"])
            await fetch(what, f"{base}/blobs/{digest}", digest, part["size"], progress)
    return pieces


async def _until_found(client: httpx.AsyncClient, node: Node) -> None:
    """The ring forms within a second or two after the last node is ready.

    It is asked by the API, because a probe of the mirror would count as a request that no neighbour answered.
    """
    with trio.move_on_after(START_TIMEOUT):
        while not (await client.get(f"http://{node.metrics}/api/lookup", params={"key": IMAGE})).json()["providers"]:
            await trio.sleep(0.1)
        return
    raise DevError(f"no neighbour offered the image within {START_TIMEOUT:g} s")
