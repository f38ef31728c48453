"""``spegel-consul dev --herd``: six nodes begin to pull one image that only the upstream registry has.

The nodes are real sidecars. In place of a container runtime each has a task of this process that pulls as containerd
does: it asks the node's mirror for each content, asks upstream if the mirror answers 404, and writes the download into
``ingest/`` of the node's layout, where other nodes' sidecars can follow it. While it lasts, the terminal shows which
node follows which, from the nodes' own summaries. At the end the bytes that left the upstream are compared with one
copy of the image.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import trio
from rich.console import Console
from rich.live import Live
from rich.tree import Tree

from spegel_consul.dev.processes import (
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
from spegel_consul.dev.sample import IMAGE, write_image, write_layout
from spegel_consul.dev.upstream import Upstream
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.store.layout import NAMESPACE
from spegel_consul.web import formatting

NODES = 6
_RATE = 8 << 20
"""Bytes a second that leave the upstream: more than makes a claimer slow, which would cost a second copy."""
_DRAW_EVERY = 0.25
_JOINED_WITHIN = 30.0
_MOST_COPIES = 1.1
_HELD = "256KiB"
"""Smaller layers are held until they are verified; the layers of the demonstration shall pass on as they grow."""


@dataclass(slots=True)
class _Pull:
    """The pull of one node; ``have`` and ``size`` are bytes, ``upstream`` those that came from there."""

    node: Node
    size: int
    have: int = 0
    upstream: int = 0
    done: bool = False
    follows: dict[str, str] = field(default_factory=dict)
    """The names of the nodes that this one follows, by what they send; drawn until the end, because the last ones were
    followed to their last byte."""


async def run(console: Console, home: Path, once: bool, port: int, size: int) -> int:
    """Run the demonstration and return the exit status. ``size``: MiB of layers."""
    image = home / "upstream"
    image.mkdir()
    write_image(image, size << 20)
    total = sum(path.stat().st_size for path in image.glob("blobs/*/*"))
    nodes = make_nodes(NODES, home, port)
    print_pages(console, nodes[0])
    upstream = Upstream(image, _RATE)
    async with (
        own_consul(console, home) as consul,
        upstream.serving(nodes[0].address),
        sidecars(nodes, consul, verify_first=_HELD),
    ):
        console.print(f"{NODES} nodes start; only the upstream at http://{upstream.address} has {IMAGE} ({size} MiB)")
        async with plain_client() as client:
            for node in nodes:
                await ready(client, node)
            await _joined(client, nodes)
            await learn_names(client, nodes)
            pulls = [_Pull(node, total) for node in nodes]
            await _pull_all(console, client, pulls, upstream)
        copies = upstream.sent / total
        console.print(
            f"upstream copies = {copies:.2f}: {NODES} nodes have the image of {formatting.size(total)},"
            f" and the upstream sent {formatting.size(upstream.sent)}"
        )
        if copies > _MOST_COPIES:
            console.print(
                f"failed: more than {_MOST_COPIES} copies left the upstream. On a machine that is too busy for the"
                " demonstration a source is too slow, and is replaced; --size makes the image smaller"
            )
            return 1
        if not once:
            console.print("\nrunning until Ctrl-C")
            await trio.sleep_forever()
    return 0


async def _joined(client: httpx.AsyncClient, nodes: list[Node]) -> None:
    """Wait until each node knows all others."""
    with trio.move_on_after(_JOINED_WITHIN):
        for node in nodes:
            while (await client.get(f"http://{node.metrics}/api/summary")).json()["members"] < len(nodes) - 1:
                await trio.sleep(0.1)
        return
    raise DevError(f"the nodes are not in one ring after {_JOINED_WITHIN:g} s")


async def _pull_all(console: Console, client: httpx.AsyncClient, pulls: list[_Pull], upstream: Upstream) -> None:
    with Live(console=console, auto_refresh=False, transient=not console.is_terminal) as live:
        async with trio.open_nursery() as nursery:
            for pull in pulls:
                nursery.start_soon(_fetch_image, pull, upstream)
            while not all(pull.done for pull in pulls):
                for pull in pulls:
                    summary = (await client.get(f"http://{pull.node.metrics}/api/summary")).json()
                    pull.follows |= {each["image"]: each["source"] for each in summary["follows"] if each["source"]}
                live.update(drawing(pulls, upstream), refresh=True)
                await trio.sleep(_DRAW_EVERY)
        live.update(drawing(pulls, upstream), refresh=True)
    if not console.is_terminal:
        console.print(drawing(pulls, upstream))


def drawing(pulls: list[_Pull], upstream: Upstream) -> Tree:
    """The tree of who follows whom, below the upstream; a node that is not placed yet is below it as well."""
    names = {pull.node.name for pull in pulls}
    sources = {pull.node.name: next((each for each in pull.follows.values() if each in names), "") for pull in pulls}
    root = Tree(f"[bold]upstream[/] sent {formatting.size(upstream.sent)}")
    branches: dict[str, Tree] = {"": root}
    waiting = list(pulls)
    while waiting:
        placed = [pull for pull in waiting if sources[pull.node.name] in branches]
        for pull in placed or waiting:  # a circle of nodes that change sources in this moment
            parent = branches.get(sources[pull.node.name], root)
            branches[pull.node.name] = parent.add(_bar(pull))
        waiting = [pull for pull in waiting if pull.node.name not in branches]
    return root


def _bar(pull: _Pull) -> str:
    cells = 24 * pull.have // pull.size
    bar = f"[green]{'━' * cells}[/][dim]{'━' * (24 - cells)}[/]"
    end = f", {formatting.size(pull.upstream)} from upstream" if pull.upstream else ""
    return f"[bold]{pull.node.name}[/] {bar} {formatting.part(pull.have, pull.size)}{end}"


async def _fetch_image(pull: _Pull, upstream: Upstream) -> None:
    """Pull as containerd does: the tag is resolved upstream, all content is asked for at the mirror first."""
    registry, _, rest = IMAGE.partition("/")
    repository, _, tag = rest.partition(":")
    # from the node's own address, because the sidecar takes other addresses for other machines
    async with plain_client(pull.node.address) as client:
        resolved = await client.head(f"http://{upstream.address}/v2/{repository}/manifests/{tag}")
        digest = Digest(resolved.headers["docker-content-digest"])

        async def fetch(kind: str, digest: Digest, size: int) -> None:
            path = f"/v2/{repository}/{'manifests' if kind == 'manifest' else 'blobs'}/{digest}"
            ingest = _begin(pull.node.layout, kind, digest, size)
            for place in (f"http://{pull.node.registry}{path}?ns={registry}", f"http://{upstream.address}{path}"):
                async with client.stream("GET", place) as response:
                    if response.status_code == 200 and await _write(
                        pull, response, ingest / "data", from_upstream=upstream.address in place
                    ):
                        _commit(pull.node.layout, ingest, digest)
                        return
            raise DevError(f"{pull.node.name}: neither the mirror nor the upstream has {digest}")

        size = int(resolved.headers["content-length"])
        await fetch("manifest", digest, size)
        manifest = json.loads((pull.node.layout / "blobs" / digest.algorithm / digest.encoded).read_bytes())
        async with trio.open_nursery() as nursery:
            for kind, part in (("config", manifest["config"]), *(("layer", layer) for layer in manifest["layers"])):
                nursery.start_soon(fetch, kind, Digest(part["digest"]), part["size"])
        named = {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": size}
        write_layout(pull.node.layout, [{**named, "annotations": {"org.opencontainers.image.ref.name": IMAGE}}])
    pull.done = True


def _begin(layout: Path, kind: str, digest: Digest, size: int) -> Path:
    """Make the directory of a download, as containerd's content store has it."""
    ingest = layout / "ingest" / f"{kind}-{digest.encoded[:16]}"
    ingest.mkdir(parents=True)
    (ingest / "total").write_text(str(size))
    (ingest / "ref").write_text(f"{NAMESPACE}/1/{kind}-{digest}")
    (ingest / "data").touch()
    return ingest


async def _write(pull: _Pull, response: httpx.Response, path: Path, *, from_upstream: bool) -> bool:
    """Append the body to a download; returns False, with an empty file, if it is cut, as when a claimer is replaced."""
    written = 0
    with path.open("ab", buffering=0) as file:
        try:
            async for piece in response.aiter_raw():
                file.write(piece)
                written += len(piece)
                pull.have += len(piece)
                pull.upstream += len(piece) if from_upstream else 0
        except httpx.HTTPError:
            file.truncate(0)
            pull.have -= written
            return False
    return True


def _commit(layout: Path, ingest: Path, digest: Digest) -> None:
    """Put a complete download to the blobs. Raises DevError if its bytes are wrong."""
    data = ingest / "data"
    if Digest.of(data.read_bytes()) != digest:
        raise DevError(f"{data}: the bytes do not have digest {digest}")
    blob = layout / "blobs" / digest.algorithm / digest.encoded
    blob.parent.mkdir(parents=True, exist_ok=True)
    data.rename(blob)
    shutil.rmtree(ingest)
