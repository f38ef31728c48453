"""Peers that lie about how long their answer is, send us elsewhere, say nonsense, stall, or drip. Both paths.

Whatever the first peer does, the client has the right bytes from the second one; if there is no other, it is told so
soon. Wrong bytes are never complete, and nothing is logged as a defect.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings

from ...conftest import head
from ..test_mirror import LAYER, get

SMALL = LAYER[:100_000]
BODIES = {"read whole": SMALL, "held": LAYER, "streamed": LAYER}
SOON = 4.0
OK = b"HTTP/1.1 200 OK\r\n"


@dataclass
class Case:
    """What a peer says to a question for ``body``. ``barred``: whether it is left alone for a while because of it."""

    name: str
    script: Any
    then: str = "close"
    barred: bool = True
    ok: bool = False
    """Whether the answer is good."""
    modes: tuple[str, ...] = ("streamed",)


ALL = tuple(BODIES)


def framed(*fields: str) -> Any:
    """A head with these fields, and the whole right body."""
    return lambda body: ["\r\n".join(["HTTP/1.1 200 OK", *fields, "", ""]).encode(), body]


def redirect(status: int, location: str) -> Case:
    return Case(f"{status} to {location}", lambda body: [head(status, 0, f"Location: {location}")])


CASES = [
    redirect(301, "http://169.254.169.254/latest/meta-data/"),
    redirect(302, "file:///etc/passwd"),
    redirect(307, "https://127.0.0.1:1/"),
    redirect(308, "{self}"),
    redirect(302, "{trap}"),
    Case("an empty body", lambda body: [head(200, 0)]),
    Case("too short", lambda body: [head(200, len(body) - 9), body[:-9]], modes=ALL),
    Case("too long", lambda body: [head(200, len(body) + 9), body + bytes(9)], modes=ALL),
    Case("longer than it is", lambda body: [head(200, len(body) + 9), body], barred=False, modes=ALL),
    Case("shorter than it says", lambda body: [head(200, len(body)), body[:-9]], barred=False, modes=ALL),
    Case("negative", framed("Content-Length: -5")),
    Case("huge", lambda body: [head(200, 1 << 62), body], barred=False),
    Case("larger than any number", framed("Content-Length: " + "9" * 40)),
    Case("two lengths", lambda body: [head(200, len(body), "Content-Length: 5"), body]),
    Case("no length", framed("X: y")),
    Case("good chunks", lambda body: [OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"]),
    Case("bad chunks", lambda body: [OK + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n" + body]),
    Case("chunks and a length", lambda body: [head(200, len(body), "Transfer-Encoding: chunked"), body]),
    Case("gzip", lambda body: [head(200, len(gz := gzip.compress(body)), "Content-Encoding: gzip"), gz], modes=ALL),
    Case("gzip that is none", lambda body: [head(200, len(body), "Content-Encoding: gzip"), body]),
    Case("206 unasked", lambda body: [head(206, 9, f"Content-Range: bytes 0-8/{len(body)}"), body[:9]], modes=ALL),
    Case("another digest", lambda body: [head(200, len(body), f"Docker-Content-Digest: {Digest.of(b'')}"), body]),
    Case("204", lambda body: [b"HTTP/1.1 204 No Content\r\n\r\n"]),
    Case("999", lambda body: [b"HTTP/1.1 999 \r\nContent-Length: 0\r\n\r\n"]),
    Case("another version", lambda body: [b"HTTP/3.0 200 OK\r\nContent-Length: 5\r\n\r\nabcde"]),
    Case("no HTTP", lambda body: [b"SSH-2.0-OpenSSH_9.2\r\n\r\n"]),
    Case("junk", lambda body: [bytes(range(256)) * 300]),
    Case("a head of 1 MiB", lambda body: [OK + b"X: " + bytes(65 for _ in range(1 << 20)) + b"\r\n\r\n"]),
    Case("a million fields", lambda body: [OK + b"X: y\r\n" * 170_000]),
    Case("a line folded", framed("X: y", " z: ", "Content-Length: 5")),
    Case("1xx for ever", lambda body: [b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000]),
    Case("1xx drips", lambda body: [b"HTTP/1.1 103 X\r\n\r\n", 0.01] * 100),
    Case("a switch", lambda body: [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"]),
    Case("silence", lambda body: [], then="hang"),
    Case("silence in the status", lambda body: [b"HTTP/1.1 2"], then="hang"),
    Case("silence in the head", lambda body: [OK + b"Content-Le"], then="hang"),
    Case("silence after the head", lambda body: [head(200, len(body))], then="hang", modes=ALL),
    Case("silence in the body", lambda body: [head(200, len(body)), body[:50_000]], then="hang", modes=ALL),
    Case("silence before the last byte", lambda body: [head(200, len(body)), body[:-1]], then="hang", modes=ALL),
    Case("a body that drips", lambda body: [head(200, len(body)), *[b"\0", 0.05] * 200], modes=ALL),
    Case("leaves at once", lambda body: [], barred=False),
    Case("leaves in the head", lambda body: [OK + b"Content-Le"], barred=False),
    Case("500", lambda body: [head(500, 0)], barred=False),
    Case("503", lambda body: [head(503, 0, "Retry-After: 3600")], barred=False),
    Case("401", lambda body: [head(401, 0, 'WWW-Authenticate: Basic realm="x"')], barred=False),
    Case(
        "a length twice",
        lambda body: [head(200, len(body), f"Content-Length: {len(body)}"), body],
        ok=True,
        barred=False,
        modes=ALL,
    ),
    Case(
        "more behind the body",
        lambda body: [head(200, len(body)), body + b"HTTP/1.1 200 OK\r\n"],
        ok=True,
        barred=False,
        modes=ALL,
    ),
    Case(
        "another type",
        lambda body: [head(200, len(body), "Content-Type: text/html"), body],
        ok=True,
        barred=False,
        modes=ALL,
    ),
]


@pytest.mark.parametrize(
    ("case", "mode"), [pytest.param(case, mode, id=f"{case.name}-{mode}") for case in CASES for mode in case.modes]
)
async def test_a_peer_that_is_no_help(
    start_node: Any, start_peer: Any, case: Case, mode: str, capfd: pytest.CaptureFixture[str]
) -> None:
    body = BODIES[mode]
    settings = MirrorSettings(verify_first=0 if mode == "streamed" else 32 << 20)
    holder, asker = await start_node(), await start_node(settings=settings)
    digest = holder.store.add_content(body)
    path = f"/v2/library/app/blobs/{digest}?ns=docker.io"
    trap = await start_peer(head(200, 4), b"trap")
    script = case.script(body)
    places = {b"{trap}": b"http://%b:%d/" % (trap.address[0].encode(), trap.address[1])}
    bad = await start_peer(*script, then=case.then)
    places[b"{self}"] = b"http://%b:%d%b" % (bad.address[0].encode(), bad.address[1], path.encode())
    for place, url in places.items():
        bad.parts = [part.replace(place, url) if isinstance(part, bytes) else part for part in bad.parts]
    provider = Provider("peer0", bad.address)

    async def attempt() -> tuple[int, bytes]:
        """Status and body; 0 for one that was cut."""
        with trio.fail_after(SOON):
            try:
                response = await client.get(asker.url + path)
            except httpx.RemoteProtocolError:
                return 0, b""
        return response.status_code, response.content

    client = httpx.AsyncClient(verify=False, trust_env=False, timeout=10)  # without what a certificate store costs
    asker.router.knows(bad.address, holder)
    status, content = await attempt()
    if status == 0:  # what is streamed can only be cut; then its sender is known, or left it to nobody's harm
        assert mode == "streamed"
        assert (await attempt()) == (200, body) or not case.barred
    else:
        # who lied about a length and left has nobody to go on where it ended
        assert (status, content) == (200, body) or (status == 404 and not case.barred and not case.ok)
    asker.router.knows(bad.address)
    for each in asker.mirror.peers.recent.get(digest):
        asker.mirror.peers.recent.drop(digest, each)
    status, content = await attempt()
    if case.ok:
        assert (status, content) == (200, body)
    else:
        assert status == 404 or (status == 0 and mode == "streamed")
    assert asker.mirror.peers.penalties.bars(provider) == case.barred
    assert len(bad.requests) <= (4 if case.barred else 8)
    assert trap.requests == []
    await client.aclose()
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err


RANGE = "bytes=1000-1999"


@pytest.mark.parametrize(
    ("script", "barred"),
    [
        ((head(206, 1000, f"Content-Range: bytes 0-999/{len(LAYER)}"), LAYER[:1000]), True),
        ((head(206, 1000, f"Content-Range: bytes 1000-1999/{len(LAYER)}, 5-6/7"), LAYER[1000:2000]), True),
        ((head(206, 999, f"Content-Range: bytes 1000-1998/{len(LAYER)}"), LAYER[1000:1999]), True),
        ((head(206, 1000, "Content-Range: bytes 1000-1999/*"), LAYER[1000:2000]), True),
        ((head(206, 1000, f"Content-Range: items 1000-1999/{len(LAYER)}"), LAYER[1000:2000]), True),
        ((head(206, 1000), LAYER[1000:2000]), True),
        ((head(206, 1000, "Content-Type: multipart/byteranges; boundary=x"), LAYER[1000:2000]), True),
        ((head(416, 0, "Content-Range: bytes */5"),), False),
        ((head(416, 0),), False),
    ],
    ids=["others", "two", "fewer", "no size", "items", "none", "multipart", "416", "416 without size"],
)
async def test_a_part_that_is_another(start_node: Any, start_peer: Any, script: Any, barred: bool) -> None:
    holder, asker = await start_node(), await start_node()
    path = f"/v2/library/app/blobs/{holder.store.add_content(LAYER)}?ns=docker.io"
    bad = await start_peer(*script)
    asker.router.knows(bad.address, holder)
    response = await get(asker, path, range=RANGE)
    assert (response.status_code, response.content) == (206, LAYER[1000:2000])
    assert response.headers["content-range"] == f"bytes 1000-1999/{len(LAYER)}"
    assert asker.mirror.peers.penalties.bars(Provider("peer0", bad.address)) == barred


async def test_the_whole_for_a_part_is_an_answer(start_node: Any, start_peer: Any) -> None:
    """RFC 9110, 14.2: a server may ignore Range."""
    asker = await start_node()
    peer = await start_peer(head(200, len(LAYER)), LAYER)
    asker.router.knows(peer.address)
    response = await get(asker, f"/v2/library/app/blobs/{Digest.of(LAYER)}?ns=docker.io", range=RANGE)
    assert (response.status_code, response.content) == (200, LAYER)


def manifest(**fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, **fields}).encode()


SHAPES = {"manifest": {"config": {}, "layers": []}, "index": {"manifests": []}}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("name", ["digest", "tag"])
@pytest.mark.parametrize(
    ("body", "said", "expected"),
    [
        (manifest(mediaType=OCI_MANIFEST, **SHAPES["manifest"]), OCI_INDEX, OCI_MANIFEST),
        (manifest(mediaType=DOCKER_MANIFEST, **SHAPES["manifest"]), OCI_MANIFEST, DOCKER_MANIFEST),
        (manifest(mediaType=DOCKER_LIST, **SHAPES["index"]), "text/html", DOCKER_LIST),
        (manifest(**SHAPES["index"]), DOCKER_MANIFEST, OCI_INDEX),
        (manifest(**SHAPES["manifest"]), OCI_INDEX, OCI_MANIFEST),
        (manifest(mediaType=OCI_INDEX, **SHAPES["index"]), None, OCI_INDEX),
        (manifest(**SHAPES["manifest"]), DOCKER_MANIFEST, DOCKER_MANIFEST),
        (manifest(**SHAPES["index"]), DOCKER_LIST, DOCKER_LIST),
        (manifest(**SHAPES["index"]), "application/json", OCI_INDEX),
        (manifest(config={}, layers=None), DOCKER_MANIFEST, DOCKER_MANIFEST),
        (manifest(manifests=None), DOCKER_MANIFEST, OCI_INDEX),
    ],
    ids=[
        "manifest",
        "Docker's",
        "list",
        "index by shape",
        "manifest by shape",
        "nothing said",
        "Docker's, not declared",
        "list, not declared",
        "another type said",
        "no layers",
        "no manifests",
    ],
)
async def test_a_manifest_is_what_it_says_not_what_its_sender_says(
    start_node: Any, start_peer: Any, body: bytes, said: str | None, expected: str, name: str, method: str
) -> None:
    asker = await start_node()
    digest = Digest.of(body)
    fields = [f"Docker-Content-Digest: {digest}", *([f"Content-Type: {said}"] if said else [])]
    peer = await start_peer(head(200, len(body), *fields), body)
    asker.router.knows(peer.address)
    path = f"/v2/library/app/manifests/{digest if name == 'digest' else 'v1'}?ns=docker.io"
    response = await get(asker, path, method)
    assert (response.status_code, response.headers["content-type"]) == (200, expected)
    assert response.headers["content-length"] == str(len(body))
    assert response.headers["docker-content-digest"] == digest
    assert response.content == (body if method == "GET" else b"")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "body",
    [b"a layer", b'{"schemaVersion": 1, "fsLayers": [], "signatures": []}', b"[" * 50_000],
    ids=["blob", "v1", "deep"],
)
async def test_what_is_no_manifest_is_not_served_as_one(
    start_node: Any, start_peer: Any, body: bytes, method: str
) -> None:
    asker = await start_node()
    digest = Digest.of(body)
    peer = await start_peer(
        head(200, len(body), f"Docker-Content-Digest: {digest}", f"Content-Type: {OCI_MANIFEST}"), body
    )
    asker.router.knows(peer.address)
    assert (await get(asker, f"/v2/library/app/manifests/{digest}?ns=docker.io", method)).status_code == 404


async def test_a_blob_is_not_larger_than_its_manifest_says(start_node: Any, start_peer: Any) -> None:
    """Else a liar would choose that its wrong bytes are streamed."""
    settings = MirrorSettings(verify_first=len(LAYER) + 1000)
    holder, asker = await start_node(), await start_node(settings=settings)
    layer = {"digest": holder.store.add_content(LAYER), "size": len(LAYER)}
    junk = [{"digest": 5, "size": 5}, {"digest": "sha256:" + "0" * 64, "size": "5"}, None, {}]
    body = manifest(mediaType=OCI_MANIFEST, config={}, layers=[*junk, layer])
    digest = holder.store.add_content(body, OCI_MANIFEST)
    liar = await start_peer(head(200, len(LAYER) + 5000), LAYER[:-1])
    asker.router.knows(holder.address)
    assert (await get(asker, f"/v2/library/app/manifests/{digest}?ns=docker.io")).content == body
    asker.router.knows(liar.address, holder)
    path = f"/v2/library/app/blobs/{layer['digest']}?ns=docker.io"
    for method in ("HEAD", "GET"):
        response = await get(asker, path, method)
        assert (response.status_code, response.headers["content-length"]) == (200, str(len(LAYER)))
        assert response.content == (LAYER if method == "GET" else b"")
    assert len(liar.requests) > 0
