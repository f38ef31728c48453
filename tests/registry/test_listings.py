"""Lists of what the node's own store has. Both paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.memory_store import MemoryStore
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.http.basic_auth import Credentials
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import PageInvalid
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.oci.media import OCI_INDEX, OCI_MANIFEST
from spegel_consul.registry.listings import MOST, Listings, Page, is_listing

from .image import LAYER, MANIFEST, MANIFEST_DIGEST, get

EMPTY = Digest.of(b"{}")


def fill(node: Any, *names: str) -> Any:
    node.store.add_content(LAYER)
    node.store.add_content(b"{}")
    for name in names:
        node.store.add_image(name, MANIFEST)
    return node


def referrer(kind: str, subject: str = MANIFEST_DIGEST, *, in_config: bool = False) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"digest": EMPTY, "size": 2, "mediaType": kind if in_config else "application/vnd.oci.empty.v1+json"},
        "layers": [],
        "subject": {"digest": subject, "size": len(MANIFEST), "mediaType": OCI_MANIFEST},
        "annotations": {"kind": kind},
    }
    return json.dumps(document if in_config else {**document, "artifactType": kind}).encode()


async def pages(node: Any, path: str, entries: str) -> list[list[str]]:
    """All pages, by the links."""
    found = []
    while path:
        response = await get(node, path)
        assert response.status_code == 200
        found.append(response.json()[entries])
        path = response.links["next"]["url"] if "next" in response.links else ""
    return found


async def test_tags_in_order_and_by_pages(start_node: Any) -> None:
    names = [f"ghcr.io/org/app:{tag}" for tag in ("b", "C", "a", "v1.10", "v1.2")]
    node = fill(await start_node(), *names, "quay.io/org/app:other", "ghcr.io/org/app2:no")
    path = "/v2/ghcr.io/org/app/tags/list"
    response = await get(node, path)
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"name": "ghcr.io/org/app", "tags": ["a", "b", "C", "v1.10", "v1.2"]}
    assert "link" not in response.headers
    assert await pages(node, f"{path}?n=2", "tags") == [["a", "b"], ["C", "v1.10"], ["v1.2"]]
    assert await pages(node, f"{path}?n=5", "tags") == [["a", "b", "C", "v1.10", "v1.2"]]
    assert await pages(node, f"{path}?last=b", "tags") == [["C", "v1.10", "v1.2"]]
    assert await pages(node, f"{path}?n=0", "tags") == [[]]
    assert (await get(node, path, "HEAD")).headers["content-length"] == response.headers["content-length"]
    assert node.router.asked == []


@pytest.mark.parametrize("number", ["-1", "x", "", "1.5", "%D9%A1"])
async def test_a_number_of_entries_that_is_none(start_node: Any, number: str) -> None:
    node = fill(await start_node(), "ghcr.io/org/app:v1")
    for path in ("/v2/_catalog", "/v2/ghcr.io/org/app/tags/list"):
        response = await get(node, f"{path}?n={number}")
        assert response.status_code == 400
        assert response.json()["errors"][0]["code"] == "PAGINATION_NUMBER_INVALID"


async def test_the_catalog_has_names_that_clients_can_use(start_node: Any) -> None:
    node = fill(
        await start_node(),
        "docker.io/library/app:v1",
        "docker.io/library/app:v2",
        "registry:5443/app:v1",
        "ghcr.io/a/b:c",
    )
    assert await pages(node, "/v2/_catalog?n=2", "repositories") == [
        ["docker.io/library/app", "ghcr.io/a/b"],
        ["registry_5443/app"],
    ]
    for name in (await get(node, "/v2/_catalog")).json()["repositories"]:
        tags = (await get(node, f"/v2/{name}/tags/list")).json()["tags"]
        assert (await get(node, f"/v2/{name}/manifests/{tags[0]}")).content == MANIFEST


async def test_a_name_without_a_registry_must_mean_one(start_node: Any) -> None:
    node = fill(await start_node(), "ghcr.io/org/app:v1")
    assert (await get(node, "/v2/org/app/tags/list")).json() == {"name": "org/app", "tags": ["v1"]}
    node.store.add_image("quay.io/org/app:v2", MANIFEST)
    response = await get(node, "/v2/org/app/tags/list")
    assert response.status_code == 404
    assert "ghcr.io, quay.io" in response.json()["errors"][0]["message"]


@pytest.mark.parametrize("path", ["_catalog", "ghcr.io/org/app/tags/list", f"org/app/referrers/{MANIFEST_DIGEST}"])
async def test_a_runtime_asks_upstream(start_node: Any, path: str) -> None:
    node = fill(await start_node(), "ghcr.io/org/app:v1")
    assert (await get(node, f"/v2/{path}")).status_code == 200
    assert (await get(node, f"/v2/{path}?ns=ghcr.io")).status_code == 404
    assert (await get(node, f"/v2/{path}", **{"oci-namespace": "ghcr.io"})).status_code == 404
    assert (await get(node, f"/v2/{path}", "POST")).status_code == 405


async def test_access_is_that_of_content(start_node: Any, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("name:password\n")
    node = fill(await start_node(credentials=Credentials(tmp_path / "credentials")), "ghcr.io/org/app:v1")
    for path in ("/v2/_catalog", "/v2/ghcr.io/org/app/tags/list", f"/v2/org/app/referrers/{MANIFEST_DIGEST}"):
        assert (await get(node, path)).status_code == 401
        async with httpx.AsyncClient(verify=False, auth=("name", "password"), trust_env=False) as client:
            assert (await client.get(node.url + path)).status_code == 200


async def test_refused_images_are_not_listed(start_node: Any) -> None:
    store = MemoryStore(ImageFilter.build([], ["secret"]).accepts)
    node = fill(await start_node(store=store), "ghcr.io/org/app:v1", "ghcr.io/org/secret:v1", "ghcr.io/org/app:secret")
    assert (await get(node, "/v2/_catalog")).json() == {"repositories": ["ghcr.io/org/app"]}
    assert (await get(node, "/v2/ghcr.io/org/app/tags/list")).json()["tags"] == ["v1"]
    assert (await get(node, "/v2/ghcr.io/org/secret/tags/list")).status_code == 404


async def test_unknown_and_malformed_names(start_node: Any) -> None:
    node = fill(await start_node(), "ghcr.io/org/app:v1")
    for path, status, code in (
        ("ghcr.io/org/other/tags/list", 404, "NAME_UNKNOWN"),
        ("quay.io/org/app/tags/list", 404, "NAME_UNKNOWN"),
        ("Org/app/tags/list", 400, "NAME_INVALID"),
        ("ghcr..io/app/tags/list", 400, "NAME_INVALID"),
        ("a/%2e%2e/app/tags/list", 400, "NAME_INVALID"),
        ("app/referrers/latest", 400, "DIGEST_INVALID"),
        (f"App/referrers/{MANIFEST_DIGEST}", 400, "NAME_INVALID"),
        (f"app/referrers/{Digest.of(b'absent')}", 404, "MANIFEST_UNKNOWN"),
    ):
        response = await get(node, f"/v2/{path}")
        assert (response.status_code, response.json()["errors"][0]["code"]) == (status, code), path


async def test_referrers_of_what_is_held(start_node: Any) -> None:
    node = fill(await start_node(), "ghcr.io/org/app:v1")
    path = f"/v2/ghcr.io/org/app/referrers/{MANIFEST_DIGEST}"
    empty = await get(node, path)
    assert empty.headers["content-type"] == OCI_INDEX
    assert empty.json() == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    sbom, signature = referrer("application/spdx+json"), referrer("application/sig", in_config=True)
    for number, each in enumerate((sbom, signature, referrer("application/sig", Digest.of(b"another")))):
        node.store.add_image(f"ghcr.io/org/app:r{number}", each)
    found = {each["digest"]: each for each in (await get(node, path)).json()["manifests"]}
    assert set(found) == {Digest.of(sbom), Digest.of(signature)}
    assert found[Digest.of(sbom)] == {
        "mediaType": OCI_MANIFEST,
        "digest": Digest.of(sbom),
        "size": len(sbom),
        "artifactType": "application/spdx+json",
        "annotations": {"kind": "application/spdx+json"},
    }
    filtered = await get(node, f"{path}?artifactType=application/sig")
    assert filtered.headers["oci-filters-applied"] == "artifactType"
    assert [each["digest"] for each in filtered.json()["manifests"]] == [Digest.of(signature)]
    assert [len(each) for each in await pages(node, f"{path}?n=1", "manifests")] == [1, 1]
    node.store.remove_content(Digest.of(sbom))
    assert [each["digest"] for each in (await get(node, path)).json()["manifests"]] == [Digest.of(signature)]


async def test_manifests_that_are_gone_are_forgotten(start_node: Any) -> None:
    store = fill(await start_node(), "ghcr.io/org/app:v1").store
    listings = Listings(store)
    path = f"/v2/ghcr.io/org/app/referrers/{MANIFEST_DIGEST}".encode()
    before = None
    for number in range(10):
        passing = store.add_image(f"ghcr.io/org/app:r{number}", referrer(f"application/x{number}"))
        found = json.loads((await listings.answer("GET", path, b"", {})).body)["manifests"]
        assert [each["digest"] for each in found] == [passing]
        before = before or len(listings._subjects)
        store.remove_content(passing)
    assert len(listings._subjects) == before


@given(st.lists(st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,5}\Z"), max_size=30), st.integers(1, 7))
def test_pages_have_each_name_once(names: list[str], number: int) -> None:
    found: list[str] = []
    last: str | None = ""
    while last is not None:
        page, last = Page(number, last).of(names)
        assert len(page) <= number
        found += page
    assert found == sorted(set(names), key=lambda name: (name.lower(), name))


def test_numbers() -> None:
    assert Page.parse({}) == Page(MOST, "")
    assert Page.parse({"n": ["99999999999999999999"], "last": ["b"]}) == Page(MOST, "b")
    with pytest.raises(PageInvalid):
        Page.parse({"n": ["²"]})


def test_paths() -> None:
    assert is_listing(b"/v2/_catalog")
    assert is_listing(b"/v2/a%2Fb/tags%2flist")
    for path in (b"/v2/", b"/v2/a/tags/list/x", b"/v2/a/manifests/v1", b"/v2/a/referrers/", b"/v2/tags/list", b"\xff"):
        assert not is_listing(path)
