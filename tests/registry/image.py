"""An image of one layer that nodes may have, and how a client asks for it."""

from __future__ import annotations

import json
from typing import Any

import httpx

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings

LAYER = bytes(range(251)) * 9000
DIGEST = Digest.of(LAYER)
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"digest": Digest.of(b"{}"), "size": 2, "mediaType": "application/vnd.oci.image.config.v1+json"},
        "layers": [{"digest": DIGEST, "size": len(LAYER), "mediaType": "application/vnd.oci.image.layer.v1.tar"}],
    }
).encode()
MANIFEST_DIGEST = Digest.of(MANIFEST)
BLOB_PATH = f"/v2/library/app/blobs/{DIGEST}?ns=docker.io"
TAG_PATH = "/v2/library/app/manifests/v1?ns=docker.io"
STREAMED = MirrorSettings(verify_first=0)


async def get(node: Any, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(verify=False, base_url=node.url, trust_env=False, timeout=10) as client:
        return await client.request(method, path, headers=headers)
