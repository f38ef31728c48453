"""Following between nodes with TLS, client certificates and passwords, over real sockets; strangers get nothing."""

from __future__ import annotations

import base64
import os
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from lab.certificates import Authority

from spegel_consul.http.basic_auth import Credentials
from spegel_consul.http.tls import Tls, TlsFiles
from spegel_consul.oci.digest import Digest
from spegel_consul.peers import Provider, peer_id_of_ed25519, peer_id_to_text
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings

from .growing_source import CLAIM, DownloadingStore, ScriptedKeeper, follow

LAYER = os.urandom(3_000_000)
PATH = f"/v2/library/app/blobs/{Digest.of(LAYER)}?ns=docker.io"
PEER = peer_id_to_text(peer_id_of_ed25519((1).to_bytes(32, "big")))
AS_PEER = {"x-spegel-mirrored": "true", "x-spegel-follow": PEER}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path)


def trusting(authority: Authority, *certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.path)
    if certificate:
        context.load_cert_chain(*certificate)
    return context


async def cold_pair(start_node: Any, tmp_path: Path, **how: Any) -> tuple[Any, Any, Path]:
    """A node whose runtime downloads the layer, one that follows it, and the path of the download."""
    settings = MirrorSettings(follow=True, verify_first=0)
    source, asker = [
        await start_node(settings=settings, store=DownloadingStore(tmp_path / name), **how)
        for name in ("source", "asker")
    ]
    asker.store.download(LAYER)
    source.router.keeper = ScriptedKeeper(CLAIM)
    asker.router.keeper = ScriptedKeeper(follow(Provider(PEER, source.address)))
    return source, asker, source.store.download(LAYER)


async def followed_as_it_grows(asker: Any, download: Path, client: httpx.AsyncClient) -> bytes:
    """Pull the layer from ``asker`` while the download that it follows grows; return what came."""
    received = b""
    with trio.fail_after(20):
        download.write_bytes(LAYER[:1_000_000])
        async with client.stream("GET", asker.url + PATH) as response:
            assert response.status_code == 200
            async for piece in response.aiter_raw():
                received += piece
                if len(received) == 1_000_000:
                    with download.open("ab") as file:
                        file.write(LAYER[1_000_000:])
    return received


@pytest.mark.parametrize("certificates", [False, True], ids=["TLS", "TLS with client certificates"])
async def test_a_growing_blob_over_tls(
    start_node: Any, authority: Authority, tmp_path: Path, certificates: bool
) -> None:
    tls = Tls(TlsFiles(*authority.issue(tmp_path, "node", "127.0.0.1"), authority.path, verify_clients=certificates))
    source, asker, download = await cold_pair(start_node, tmp_path, tls=tls)
    own = trusting(authority, *authority.issue(tmp_path, "client", "client"))
    async with httpx.AsyncClient(verify=own, trust_env=False) as client:
        assert (await client.get(source.url + PATH)).status_code == 404  # the runtime goes upstream
        assert await followed_as_it_grows(asker, download, client) == LAYER
    assert asker.metric("spegel_followed_bytes_total") == len(LAYER)
    assert source.metric("spegel_served_bytes_total", {"source": "own"}) == len(LAYER)
    if certificates:
        strange = Authority.make(tmp_path, "stranger")
        pair = strange.issue(tmp_path, "strange-client", "client")
        for context in (trusting(authority), trusting(authority, *pair)):
            async with httpx.AsyncClient(verify=context, trust_env=False) as client:
                with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.ConnectError)):
                    await client.get(source.url + PATH, headers=AS_PEER)
        assert source.metric("spegel_served_bytes_total", {"source": "own"}) == len(LAYER)


async def test_a_growing_blob_with_a_password(start_node: Any, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("node:correct horse\n")
    credentials = Credentials(file)
    source, asker, download = await cold_pair(start_node, tmp_path, credentials=credentials)
    known = {"authorization": "Basic " + base64.b64encode(b"node:correct horse").decode()}
    async with httpx.AsyncClient(verify=False, trust_env=False, headers=known) as client:
        assert (await client.get(source.url + PATH)).status_code == 404
        assert await followed_as_it_grows(asker, download, client) == LAYER
    assert asker.metric("spegel_followed_bytes_total") == len(LAYER)
    served = source.metric("spegel_served_bytes_total", {"source": "own"})
    wrong = {"authorization": "Basic " + base64.b64encode(b"node:wrong").decode()}
    for fields in ({}, wrong):
        async with httpx.AsyncClient(verify=False, trust_env=False) as client:
            response = await client.get(source.url + PATH, headers=AS_PEER | fields)
        assert response.status_code == 401
        assert LAYER[:64] not in response.content
    assert source.metric("spegel_served_bytes_total", {"source": "own"}) == served == len(LAYER)


async def test_a_request_that_waits_over_tls_is_told_so(start_node: Any, authority: Authority, tmp_path: Path) -> None:
    """The follower waits longer than a silence is believed, because interim answers come over TLS too."""
    tls = Tls(TlsFiles(*authority.issue(tmp_path, "node", "127.0.0.1"), authority.path))
    source, asker, download = await cold_pair(start_node, tmp_path, tls=tls)
    async with httpx.AsyncClient(verify=trusting(authority), trust_env=False, timeout=30) as client:
        assert (await client.get(source.url + PATH)).status_code == 404
        answers: list[bytes] = []

        async def pull() -> None:
            answers.append((await client.get(asker.url + PATH)).content)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull)
            await trio.sleep(5)  # the runtime of the source is at another layer, of which more comes
            other = source.store.download(b"other" * 100)
            other.write_bytes(b"other")
            await trio.sleep(4)
            download.write_bytes(LAYER)
    assert answers == [LAYER]
    assert not [report for _, report in asker.router.reports if report.lost]
