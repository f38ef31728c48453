"""TLS and basic authentication, between nodes and of their clients."""

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
from structlog.testing import capture_logs

from spegel_consul.http import basic_auth as credentials_module
from spegel_consul.http import tls as tls_module
from spegel_consul.http.basic_auth import Credentials, CredentialsError
from spegel_consul.http.tls import Tls, TlsError, TlsFiles
from spegel_consul.oci.digest import Digest

LAYER = os.urandom(3_000_000)
DIGEST = Digest.of(LAYER)
PATH = f"/v2/library/app/blobs/{DIGEST}?ns=docker.io"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path)


def tls_of(authority: Authority, directory: Path, name: str = "node", **kwargs: Any) -> Tls:
    cert, key = authority.issue(directory, name, "127.0.0.1")
    return Tls(TlsFiles(cert, key, authority.path, **kwargs))


def trusting(authority: Authority, *certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.path)
    if certificate:
        context.load_cert_chain(*certificate)
    return context


@pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "h2"])
async def test_a_blob_through_two_nodes_over_tls(
    start_node: Any, authority: Authority, tmp_path: Path, http2: bool
) -> None:
    tls = tls_of(authority, tmp_path)
    holder, asker = await start_node(tls=tls), await start_node(tls=tls)
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    async with httpx.AsyncClient(verify=trusting(authority), http2=http2, trust_env=False) as client:
        for _ in range(2):
            response = await client.get(asker.url + PATH)
            assert response.http_version == "HTTP/1.1"  # of HTTP/2 nothing can be cut
            assert response.content == LAYER
        part = await client.get(holder.url + PATH, headers={"range": "bytes=1000000-"})
        assert (part.status_code, part.content) == (206, LAYER[1_000_000:])


async def test_nodes_of_another_authority_are_not_believed(
    start_node: Any, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority.make(tmp_path, "stranger")
    holder = await start_node(tls=tls_of(stranger, tmp_path, "strange-node"))
    plain = await start_node()
    asker = await start_node(tls=tls_of(authority, tmp_path))
    for node in (holder, plain):
        node.store.add_content(LAYER)
    asker.router.knows(holder, plain)
    async with httpx.AsyncClient(verify=trusting(authority), trust_env=False) as client:
        with trio.fail_after(3):
            assert (await client.get(asker.url + PATH)).status_code == 404
        with pytest.raises(httpx.ConnectError):
            await client.get(holder.url + "/readyz")


async def test_clients_without_a_certificate_are_refused(start_node: Any, authority: Authority, tmp_path: Path) -> None:
    tls = tls_of(authority, tmp_path, verify_clients=True)
    holder, asker = await start_node(tls=tls), await start_node(tls=tls)
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    pair = authority.issue(tmp_path, "client", "client")
    async with httpx.AsyncClient(verify=trusting(authority, *pair), trust_env=False) as client:
        assert (await client.get(asker.url + PATH)).content == LAYER
    async with httpx.AsyncClient(verify=trusting(authority), trust_env=False) as client:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await client.get(asker.url + PATH)
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b""):
        async with await trio.open_tcp_stream(*asker.address) as stream:
            await stream.send_all(garbage)
    async with httpx.AsyncClient(verify=trusting(authority, *pair), trust_env=False) as client:
        assert (await client.get(asker.url + "/readyz")).status_code == 200


async def test_a_renewed_certificate_is_used_and_a_broken_one_is_not(
    start_node: Any, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_module, "_LOOK_EVERY", 0.001)
    tls = tls_of(authority, tmp_path)
    node = await start_node(tls=tls)

    def serial() -> str:
        return str(ssl.get_server_certificate(node.address, timeout=5))

    first = await trio.to_thread.run_sync(serial)
    async with trio.open_nursery() as nursery:
        await nursery.start(tls.run)
        before = tls.server()
        authority.issue(tmp_path, "node", "127.0.0.1")
        with trio.fail_after(30):
            while tls.server() is before:
                await trio.sleep(0.001)
            while (second := await trio.to_thread.run_sync(serial)) == first:
                pass
            with capture_logs() as said:
                (tmp_path / "node-key.pem").write_text("half a fi")
                while not said:
                    await trio.sleep(0.001)
        assert said[0]["event"] == "new TLS files are not used"
        assert await trio.to_thread.run_sync(serial) == second
        nursery.cancel_scope.cancel()


def test_files_that_are_wrong(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue(tmp_path, "one", "127.0.0.1")
    _, other = authority.issue(tmp_path, "two", "127.0.0.1")
    junk = tmp_path / "junk.pem"
    junk.write_text("not PEM")
    for files, culprit in (
        (TlsFiles(tmp_path / "missing.pem", key), "missing.pem can't be read: No such file"),
        (TlsFiles(cert, other), "one.pem and key"),
        (TlsFiles(junk, key), "junk.pem and key"),
        (TlsFiles(cert, key, junk), "junk.pem holds no certificate"),
        (TlsFiles(cert, key, tmp_path / "no-ca.pem"), "no-ca.pem can't be read"),
    ):
        with pytest.raises(TlsError, match=culprit):
            Tls(files)


async def get(node: Any, path: str, user: str | None = None) -> httpx.Response:
    headers = {} if user is None else {"authorization": "Basic " + base64.b64encode(user.encode()).decode()}
    async with httpx.AsyncClient(verify=False, trust_env=False) as client:
        return await client.get(node.url + path, headers=headers)


async def test_only_those_who_know_a_password_are_answered(
    start_node: Any, start_peer: Any, tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials_module, "_LOOK_EVERY", 0.05)
    file = tmp_path / "users"
    file.write_text("# ours\nnode:first secret:x\n\nother:two\n")
    known = Credentials(file)
    await nursery.start(known.run)
    holder, asker = await start_node(credentials=known), await start_node(credentials=known)
    small = holder.store.add_content(b"small")
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    for path in (PATH, f"/v2/library/app/blobs/{small}?ns=docker.io", "/v2/", "/v2/library/app/manifests/v1"):
        for user in (None, "node:wrong", "other:first secret:x"):
            refused = await get(asker, path, user)
            assert (refused.status_code, refused.json()["errors"][0]["code"]) == (401, "UNAUTHORIZED"), path
            assert refused.headers["www-authenticate"] == 'Basic realm="spegel-consul"'
    for user in ("node:first secret:x", "other:two"):
        assert (await get(asker, PATH, user)).content == LAYER
        assert (await get(holder, f"/v2/library/app/blobs/{small}?ns=docker.io", user)).content == b"small"
        assert (await get(asker, "/v2/", user)).status_code == 200
    assert (await get(asker, "/readyz")).status_code == 200
    # what was answered a moment ago is asked about again when the file has changed
    file.write_text("node:third\n")
    with trio.fail_after(5):
        while (await get(holder, f"/v2/library/app/blobs/{small}?ns=docker.io", "other:two")).status_code != 401:
            await trio.sleep(0.02)
    assert (await get(asker, PATH, "node:third")).content == LAYER
    file.write_text("nonsense")
    await trio.sleep(0.2)
    assert (await get(asker, "/v2/", "node:third")).status_code == 200
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read"),
        ("", "has no name:password line"),
        ("a:b\nnopassword\n", "line 2: expected name:password"),
    ],
)
def test_a_file_without_passwords(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "users").write_text(text)
    with pytest.raises(CredentialsError, match=message):
        Credentials(tmp_path / "users")
