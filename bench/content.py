# One image whose layers are the blobs that are asked for.  All servers read the same files - docker-registry its own
# names for them, hard links - so what is in the page cache for one is so for all.

"""The content that is served: an OCI image layout, made once and kept."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = "bench/image"
IMAGE = f"docker.io/{REPOSITORY}:v1"
MIB = 1 << 20

_SIZES = {"1 MiB": MIB, "100 MiB": 100 * MIB, "1 GiB": 1024 * MIB}
_PIECE = 4 * MIB
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_SPARE = 256 * MIB


class ContentError(Exception):
    """The content can't be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One manifest or blob: what to ask for, and where its bytes are."""

    kind: str
    digest: str
    size: int
    path: Path

    @property
    def target(self) -> str:
        """Path and query of a request, as containerd sends it."""
        return f"/v2/{REPOSITORY}/{self.kind}/{self.digest}?ns=docker.io"


@dataclass(frozen=True, slots=True)
class Content:
    """``pieces`` by name: "1 MiB", "100 MiB", "1 GiB" and "manifest"."""

    layout: Path
    empty_layout: Path
    registry: Path
    pieces: dict[str, Piece]

    @property
    def blobs(self) -> Path:
        """The directory that has one file per digest, named by its hex part."""
        return self.layout / "blobs/sha256"

    @property
    def keys(self) -> list[str]:
        """All keys under which a node with this content is found."""
        return [IMAGE, *(piece.digest for piece in self.pieces.values())]


def prepare(cache: Path) -> Content:
    """Make the content below ``cache``, or take what is there. Raises ContentError."""
    root = cache / "content"
    listing = root / "pieces.json"
    if not listing.exists():
        _make(root, listing)
    layout = root / "layout"
    pieces = {}
    for name, (kind, digest, size) in json.loads(listing.read_text()).items():
        path = layout / "blobs/sha256" / digest.removeprefix("sha256:")
        if not path.exists() or path.stat().st_size != size:
            raise ContentError(f"{path} is not what it was: remove {root}")
        pieces[name] = Piece(kind, digest, size, path)
    return Content(layout, root / "empty", root / "registry", pieces)


def _make(root: Path, listing: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    free = shutil.disk_usage(root).free
    needed = sum(_SIZES.values()) + _SPARE
    if free < needed:
        raise ContentError(f"{root} has {free // MIB} MiB free, {needed // MIB} MiB are needed; see --cache")
    layout = root / "layout"
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    layers = {name: _blob(blobs, size) for name, size in _SIZES.items()}
    config = _put(blobs, json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}}).encode())
    manifest = _put(blobs, _manifest(config, layers))
    index = {
        "mediaType": _MANIFEST_TYPE,
        "digest": manifest[0],
        "size": manifest[1],
        "annotations": {"org.opencontainers.image.ref.name": IMAGE},
    }
    _write_index(layout, [index])
    (root / "empty/blobs/sha256").mkdir(parents=True)
    _write_index(root / "empty", [])
    _link_registry(root / "registry", blobs, manifest[0], [config[0], *(digest for digest, _ in layers.values())])
    pieces = {"manifest": ("manifests", *manifest)} | {name: ("blobs", *layer) for name, layer in layers.items()}
    os.sync()  # pages that are not written yet can't be dropped from the cache
    listing.write_text(json.dumps(pieces))


def _blob(blobs: Path, size: int) -> tuple[str, int]:
    """A file of ``size`` bytes that do not repeat within a piece; the same on every machine."""
    piece = bytearray(random.Random(size).randbytes(min(size, _PIECE)))
    hasher = hashlib.sha256()
    draft = blobs / ".draft"
    with draft.open("wb") as file:
        for number in range(size // len(piece)):
            piece[:8] = number.to_bytes(8, "big")
            hasher.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(blobs / hasher.hexdigest())
    return f"sha256:{hasher.hexdigest()}", size


def _put(blobs: Path, body: bytes) -> tuple[str, int]:
    digest = hashlib.sha256(body).hexdigest()
    (blobs / digest).write_bytes(body)
    return f"sha256:{digest}", len(body)


def _manifest(config: tuple[str, int], layers: dict[str, tuple[str, int]]) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config[0], "size": config[1]},
        "layers": [{"mediaType": _LAYER_TYPE, "digest": digest, "size": size} for digest, size in layers.values()],
        "annotations": {"padding": "."},
    }
    # 1 KiB, about the size of a manifest of a few layers
    document["annotations"] = {"padding": "." * (1025 - len(json.dumps(document)))}
    return json.dumps(document).encode()


def _write_index(layout: Path, manifests: list[dict[str, object]]) -> None:
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))


def _link_registry(root: Path, blobs: Path, manifest: str, others: list[str]) -> None:
    base = root / "docker/registry/v2"
    repository = base / "repositories" / REPOSITORY
    for digest in (manifest, *others):
        encoded = digest.removeprefix("sha256:")
        data = base / "blobs/sha256" / encoded[:2] / encoded / "data"
        data.parent.mkdir(parents=True)
        data.hardlink_to(blobs / encoded)
        where = "_manifests/revisions" if digest == manifest else "_layers"
        link = repository / where / "sha256" / encoded / "link"
        link.parent.mkdir(parents=True)
        link.write_text(digest)
