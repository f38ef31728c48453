"""The sample image of the demonstration, written as an OCI image layout."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_CONFIG, OCI_MANIFEST

IMAGE = "registry.example.com/demo/hello:v1"
_TAR = "application/vnd.oci.image.layer.v1.tar"


def write_image(layout: Path, size: int) -> None:
    """Write an image of three random layers, ``size`` bytes together."""
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
    write_layout(layout, [entry])


def _put(layout: Path, content: bytes, media_type: str) -> dict[str, object]:
    digest = Digest.of(content)
    path = layout / "blobs" / digest.algorithm / digest.encoded
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"mediaType": media_type, "digest": str(digest), "size": len(content)}


def manifest_of(layout: Path) -> Digest:
    """The digest of the manifest of the only image in a layout."""
    [entry] = json.loads((layout / "index.json").read_text())["manifests"]
    return Digest(entry["digest"])


def write_layout(layout: Path, manifests: Sequence[dict[str, object]]) -> None:
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": list(manifests)}))
