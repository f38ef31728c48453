# Images are made by hand in the form of an OCI layout, the same bytes for the same arguments, so that a test knows
# each digest beforehand.  Layers hold random data and are gzipped without compression: what can't be compressed needs
# no time to try.  The arm64 half exists to show that nobody fetches it; its layers are tiny.

"""Images with known digests."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import parts

MIB = 1 << 20
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

_TINY = 1024
_SAYS = "hello"


@dataclass(frozen=True, slots=True)
class Platform:
    """One platform's part of an image."""

    architecture: str
    manifest: str
    config: str
    layers: tuple[str, ...]

    @property
    def digests(self) -> set[str]:
        return {self.manifest, self.config, *self.layers}


@dataclass(frozen=True, slots=True)
class Image:
    """An image for amd64 and arm64. ``name`` is the full reference, such as ``docker.io/library/app:v1``."""

    name: str
    index: str
    amd64: Platform
    arm64: Platform
    layout: Path
    tar: Path

    @property
    def tag(self) -> str:
        return self.name.rpartition(":")[2]

    @property
    def registry(self) -> str:
        return self.name.partition("/")[0]

    @property
    def repository(self) -> str:
        return self.name.partition("/")[2].rpartition(":")[0]

    @property
    def digests(self) -> set[str]:
        """All that an amd64 node has after a pull."""
        return {self.index, *self.amd64.digests}

    def blob(self, digest: str) -> Path:
        return self.layout / "blobs" / digest.replace(":", "/")


MakeImage = Callable[..., Image]


def build(directory: Path, name: str, layers: Sequence[int] = (MIB,), seed: int = 1) -> Image:
    """Make an image with a busybox layer and ``layers`` of so many bytes of random data in ``directory``."""
    layout = _Layout(directory / "layout")
    amd64, first = _platform(layout, "amd64", name, layers, seed)
    arm64, second = _platform(layout, "arm64", name, [_TINY for _ in layers], seed)
    index = layout.put(INDEX, _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [first, second]}))
    digest = str(index["digest"])
    tag = name.rpartition(":")[2]
    index["annotations"] = {"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": name}
    (layout.path / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [index]}))
    (layout.path / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    tar = directory / "image.tar"
    with tarfile.open(tar, "w") as archive:
        for file in sorted(path for path in layout.path.glob("**/*") if path.is_file()):
            archive.add(
                file, str(file.relative_to(layout.path)), filter=lambda member: member.replace(mtime=0, deep=False)
            )
    return Image(name, digest, amd64, arm64, layout.path, tar)


def is_whole(content: Path, digest: str) -> bool:
    """Whether a content store has the right bytes of ``digest``."""
    file = content / "blobs" / digest.replace(":", "/")
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == digest.partition(":")[2]
    except FileNotFoundError:
        return False


class _Layout:
    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)

    def put(self, media_type: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (self.path / "blobs/sha256" / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _platform(
    layout: _Layout, architecture: str, name: str, sizes: Iterable[int], seed: int
) -> tuple[Platform, dict[str, Any]]:
    source = random.Random(f"{seed} {name} {architecture}")
    tars = [_busybox() if architecture == "amd64" else _tar([("bin/sh", source.randbytes(_TINY))])]
    tars += [_tar([(f"data/{number}", source.randbytes(size))]) for number, size in enumerate(sizes)]
    layers = [layout.put(LAYER, gzip.compress(tar, compresslevel=0, mtime=0)) for tar in tars]
    config = layout.put(
        CONFIG,
        _json(
            {
                "architecture": architecture,
                "os": "linux",
                "config": {"Cmd": ["/bin/sh", "-c", f"echo {_SAYS}"], "Env": ["PATH=/bin"]},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]},
            }
        ),
    )
    content = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    manifest = layout.put(MANIFEST, _json(content))
    manifest["platform"] = {"architecture": architecture, "os": "linux"}
    digests = tuple(layer["digest"] for layer in layers)
    return Platform(architecture, manifest["digest"], config["digest"], digests), manifest


def _busybox() -> bytes:
    return _tar([("bin/busybox", parts.busybox().read_bytes()), ("etc/passwd", b"root:x:0:0::/:/bin/sh\n")], "bin/sh")


def _tar(files: Iterable[tuple[str, bytes]], shell: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.mode = 0o755
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if shell is not None:
            link = tarfile.TarInfo(shell)
            link.type = tarfile.SYMTYPE
            link.linkname = "busybox"
            archive.addfile(link)
    return buffer.getvalue()


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
