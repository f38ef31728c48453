"""The media type of a manifest that does not say it itself, on its way from a node's store to another node's client."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

from .image import get

CONFIG = {"digest": Digest.of(b"{}"), "size": 2, "mediaType": "application/vnd.docker.container.image.v1+json"}
MANIFEST = {"schemaVersion": 2, "config": CONFIG, "layers": []}
INDEX = {"schemaVersion": 2, "manifests": []}


@pytest.mark.parametrize(
    ("document", "named", "served"),
    [
        (MANIFEST, DOCKER_MANIFEST, DOCKER_MANIFEST),
        (INDEX, DOCKER_LIST, DOCKER_LIST),
        (MANIFEST, OCI_MANIFEST, OCI_MANIFEST),
        (INDEX, OCI_INDEX, OCI_INDEX),
        (MANIFEST, DOCKER_LIST, OCI_MANIFEST),
        (INDEX, DOCKER_MANIFEST, OCI_INDEX),
        ({**MANIFEST, "layers": None}, DOCKER_MANIFEST, DOCKER_MANIFEST),
    ],
)
async def test_a_type_that_only_the_descriptor_says_goes_through_a_neighbour(
    start_node: Any, document: object, named: str, served: str
) -> None:
    holder, asker = await start_node(), await start_node()
    body = json.dumps(document).encode()
    holder.store.add_content(b"{}")
    digest = holder.store.add_content(body, named)
    asker.router.knows(holder)
    for node in (holder, asker):
        for method in ("GET", "HEAD"):
            response = await get(node, f"/v2/library/app/manifests/{digest}?ns=docker.io", method)
            assert (response.status_code, response.headers["content-type"]) == (200, served)
