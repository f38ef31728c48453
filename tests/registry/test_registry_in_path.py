"""Clients that know no mirrors write the registry of an image into the path. Both paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spegel_consul.http.basic_auth import Credentials
from spegel_consul.oci.filters import ImageFilter

from .image import DIGEST, LAYER, MANIFEST, MANIFEST_DIGEST, get

NAME = "ghcr.io/org/app"
TAG = f"/v2/{NAME}/manifests/v1"
PATHS = (TAG, f"/v2/{NAME}/manifests/{MANIFEST_DIGEST}", f"/v2/{NAME}/blobs/{DIGEST}")


def fill(node: Any, name: str = f"{NAME}:v1") -> Any:
    node.store.add_content(LAYER)
    node.store.add_content(b"{}")
    node.store.add_image(name, MANIFEST)
    return node


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_own_and_mirrored_content(start_node: Any, method: str) -> None:
    holder, asker = fill(await start_node()), await start_node()
    asker.router.knows(holder)
    for node in (holder, asker):
        for path in PATHS:
            for _ in range(2):  # the second answer may be remembered
                response = await get(node, path, method)
                assert response.status_code == 200
                body = LAYER if "/blobs/" in path else MANIFEST
                assert response.content == (body if method == "GET" else b"")
                assert response.headers["content-length"] == str(len(body))
    assert f"{NAME}:v1" in asker.router.asked
    assert not holder.router.asked


async def test_blobs_by_the_path_take_the_same_way_as_by_a_query(start_node: Any) -> None:
    node = fill(await start_node())
    before = node.fast_path.taken if node.fast_path else 0
    assert (await get(node, PATHS[2])).content == LAYER
    assert (await get(node, PATHS[2], range="bytes=5-9")).content == LAYER[5:10]
    assert node.fast_path is None or node.fast_path.taken == before + 2


async def test_a_tag_of_another_registry_is_not_served(start_node: Any) -> None:
    node = fill(await start_node(), "quay.io/org/app:v1")
    for path in (TAG, "/v2/org/app/manifests/v1", "/v2/docker.io/org/app/manifests/v1", f"{TAG}?ns=quay.io"):
        assert (await get(node, path)).status_code == 404
    assert (await get(node, "/v2/quay.io/org/app/manifests/v1")).content == MANIFEST
    assert (await get(node, "/v2/org/app/manifests/v1?ns=quay.io")).content == MANIFEST


@pytest.mark.parametrize("name", ["docker.io/app", "docker.io/library/app", "index.docker.io/app"])
async def test_docker_hub_with_and_without_its_library(start_node: Any, name: str) -> None:
    node = fill(await start_node(), "docker.io/library/app:v1")
    assert (await get(node, f"/v2/{name}/manifests/v1")).content == MANIFEST


async def test_a_registry_with_a_port(start_node: Any) -> None:
    node = fill(await start_node(), "registry:5443/org/app:v1")
    for name in ("registry_5443/org/app", "registry:5443/org/app", "registry%3A5443/org/app"):
        assert (await get(node, f"/v2/{name}/manifests/v1")).content == MANIFEST


async def test_filters_hold(start_node: Any) -> None:
    for images in (ImageFilter.build(["quay.io"]), ImageFilter.build([], ["^ghcr.io/org/"])):
        node = fill(await start_node(images=images))
        for path in PATHS:
            assert (await get(node, path)).status_code == 404
        assert not node.router.asked


async def test_credentials_are_asked_for(start_node: Any, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("name:password\n")
    node = fill(await start_node(credentials=Credentials(tmp_path / "credentials")))
    for path in PATHS:
        assert (await get(node, path)).status_code == 401


@pytest.mark.parametrize(
    "name", ["GHCR.io/org/app", "ghcr..io/app", "ghcr.io_x/app", "host:99999/app", "ghcr.io/%2e%2e/app"]
)
async def test_malformed_names(start_node: Any, name: str) -> None:
    node = await start_node()
    for path in (f"/v2/{name}/manifests/v1", f"/v2/{name}/blobs/{DIGEST}"):
        response = await get(node, path)
        assert response.status_code == 400
        assert response.json()["errors"][0]["code"] == "NAME_INVALID"
