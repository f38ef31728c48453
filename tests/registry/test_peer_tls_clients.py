"""Encryption between nodes, and clients that are no nodes."""

from __future__ import annotations

import base64
import re
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from lab.certificates import Authority

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.authority.consul_tls import ConsulTls
from spegel_consul.endpoints import dial_back
from spegel_consul.http.basic_auth import Credentials
from spegel_consul.http.peer_tls import Encryption, PeerTls
from spegel_consul.http.server import negotiate
from spegel_consul.http.tls import Tls, TlsFiles
from spegel_consul.join.polled import SourceError
from spegel_consul.join.sources.http_document import HttpSource
from tests.registry.encrypted_nodes import (
    ASKER,
    AUTHORITY,
    CONTENT,
    HOLDER,
    LAYER,
    PATH,
    PREFER,
    REQUIRE,
    by_runtime,
    by_stranger,
    consul_tls,
)


@pytest.mark.parametrize("encryption", [PREFER, REQUIRE])
async def test_handshakes_that_stall_hold_up_nobody(
    start_node: Any, encryption: Encryption, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negotiate, "HANDSHAKE", 0.3)
    node = await start_node(host=HOLDER, tls=consul_tls(encryption))
    node.store.add_content(LAYER)
    for start in (b"\x16", b"\x16\x03\x01\x02", b"\x16\x03\x01\x00\x05GET /"):
        async with await trio.open_tcp_stream(*node.address) as stalled:
            await stalled.send_all(start)
            assert (await by_stranger(node, tls=consul_tls(REQUIRE).client())).content == LAYER
            assert (await by_runtime(node)).content == LAYER
            with trio.fail_after(5):
                while await stalled.receive_some():
                    pass


@pytest.mark.parametrize("source", [HOLDER, "127.0.0.1"])
async def test_a_connection_ahead_of_its_need(start_node: Any, source: str) -> None:
    """A runtime opens one and asks later; it waits as long as any idle connection, and no longer."""
    node = await start_node(host=HOLDER, tls=consul_tls(PREFER), keep_alive=2.0)
    node.store.add_content(LAYER)
    async with await trio.open_tcp_stream(*node.address, local_address=source) as spare:
        await trio.sleep(0.5)
        await spare.send_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
        assert bytes(await spare.receive_some()).startswith(b"HTTP/1.1 200")
    async with await trio.open_tcp_stream(*node.address, local_address=source) as spare:
        with trio.fail_after(5):
            assert await spare.receive_some() == b""


@pytest.mark.parametrize("source", [HOLDER, "127.0.0.1"])
async def test_a_stop_ends_a_connection_ahead_of_its_need(start_node: Any, source: str) -> None:
    node = await start_node(host=HOLDER, tls=consul_tls(PREFER), keep_alive=60.0)
    async with await trio.open_tcp_stream(*node.address, local_address=source) as spare:
        await trio.sleep(0.1)
        node.stop.set()
        with trio.fail_after(10):
            assert await spare.receive_some() == b""


@pytest.mark.parametrize("encryption", [PREFER, REQUIRE])
async def test_this_machine_s_own_clients_may_speak_tls(start_node: Any, encryption: Encryption) -> None:
    """As runtimes do whose files were written while the whole port spoke TLS."""
    node = await start_node(host=HOLDER, tls=consul_tls(encryption))
    node.store.add_content(LAYER)
    transport = httpx.AsyncHTTPTransport(local_address=HOLDER, verify=consul_tls(REQUIRE).client() or False)
    async with httpx.AsyncClient(transport=transport) as client:
        for _ in range(2):
            assert (await client.get(f"https://{HOLDER}:{node.address[1]}{PATH}")).content == LAYER


async def test_passwords_are_asked_for_over_tls_too(start_node: Any, tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("node:first secret\n")
    known = Credentials(file)
    holder = await start_node(host=HOLDER, tls=consul_tls(REQUIRE), credentials=known)
    asker = await start_node(host=ASKER, tls=consul_tls(REQUIRE), credentials=known)
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    shown = "Basic " + base64.b64encode(b"node:first secret").decode()
    assert (await by_runtime(asker, authorization=shown)).content == LAYER
    assert (await by_runtime(asker)).status_code == 401
    assert (await by_stranger(holder, tls=consul_tls(REQUIRE).client())).status_code == 401
    assert (await by_stranger(holder)).status_code == 403


@pytest.mark.parametrize("verify_clients", [False, True])
async def test_the_same_modes_with_certificates_from_files(
    start_node: Any, tmp_path: Path, verify_clients: bool
) -> None:
    authority = Authority.make(tmp_path)

    def files(name: str, host: str, encryption: Encryption) -> PeerTls:
        cert, key = authority.issue(tmp_path, name, host)
        return Tls(TlsFiles(cert, key, authority.path, verify_clients), encryption)

    holder = await start_node(host=HOLDER, tls=files("holder", HOLDER, REQUIRE))
    ours = files("asker", ASKER, PREFER)
    asker = await start_node(host=ASKER, tls=ours)
    plain = await start_node(host="127.0.0.4")
    wrong = await start_node(host="127.0.0.5", tls=files("wrong", "10.0.0.1", REQUIRE))
    holder.store.add_content(LAYER)
    for node, encrypted in ((holder, True), (plain, False), (wrong, False)):
        content = CONTENT.randbytes(1000)
        asker.router.knows(node)
        path = f"/v2/library/app/blobs/{node.store.add_content(content)}?ns=docker.io"
        answer = await by_runtime(asker, path)
        assert (answer.status_code, answer.content == content) == ((200, True) if node is not wrong else (404, False))
        assert ours.links.encrypted(node.address[0]) is encrypted
    assert (await by_stranger(holder)).status_code == 403
    trusting_all = ssl.create_default_context(cafile=authority.path)
    if verify_clients:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await by_stranger(holder, tls=trusting_all)
    else:
        assert (await by_stranger(holder, tls=trusting_all)).content == LAYER


async def test_a_cluster_whose_whole_port_speaks_tls_moves_to_plain_runtimes(start_node: Any, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    cert, key = authority.issue(tmp_path, "nodes", HOLDER, ASKER)
    files = TlsFiles(cert, key, authority.path, verify_clients=True)
    before = await start_node(host=HOLDER, tls=Tls(files))
    after = await start_node(host=ASKER, tls=Tls(files, REQUIRE))
    for one, two in ((before, after), (after, before)):
        one.store.add_content(LAYER)
        two.router.knows(one)
        if two is after:
            assert (await by_runtime(two)).content == LAYER
        else:
            context = ssl.create_default_context(cafile=authority.path)
            context.load_cert_chain(cert, key)
            assert (await by_stranger(two, tls=context)).content == LAYER


async def test_bootstrap_peers_from_nodes_that_require_tls(start_node: Any) -> None:
    node = await start_node(host=HOLDER, tls=consul_tls(REQUIRE))
    url = f"https://{HOLDER}:{node.address[1]}/id"
    for tls, says in (
        (consul_tls(REQUIRE), "answers 404"),  # these nodes have no ring
        (ConsulTls(ConsulClient(ConsulSettings()), REQUIRE, None), "this node has no certificate"),
        (consul_tls(REQUIRE, leaf=AUTHORITY.leaf("web")), "disconnected|reset|closed|read"),
    ):
        with pytest.raises(SourceError, match=says):
            await HttpSource(url, tls=tls).ask()
    with pytest.raises(SourceError, match="answers 403: it may serve other machines over TLS only"):
        await HttpSource(url.replace("https", "http"), tls=consul_tls(REQUIRE)).ask()
    theirs = consul_tls(REQUIRE, leaf=AUTHORITY.leaf("web"))
    web = await start_node(host=HOLDER, tls=theirs)
    with pytest.raises(SourceError, match="another service"):
        await HttpSource(f"https://{HOLDER}:{web.address[1]}/id", tls=consul_tls(REQUIRE)).ask()


@pytest.mark.parametrize(("only_own", "client"), [(True, ""), (False, "127.0.0.1")])
async def test_clients_of_the_runtimes_own_port_are_this_machine_s(
    start_node: Any, only_own: bool, client: str
) -> None:
    """Behind a port mapping their address is that of a bridge."""
    node = await start_node(host=HOLDER, only_own=only_own)
    assert (await by_stranger(node)).status_code == 404
    assert node.mirror.traces.over[-1].client == client


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])
async def test_a_client_of_both_address_families_port_has_one_name(start_node: Any, encrypted: bool) -> None:
    """A socket of both families shows IPv4 clients as IPv6 addresses, under which nothing else knows them."""
    node = await start_node(host="", tls=consul_tls(PREFER))
    node.address = (HOLDER, node.address[1])
    answer = await by_stranger(node, tls=consul_tls(PREFER).client() if encrypted else None)
    assert answer.status_code == 404
    assert node.mirror.traces.over[-1].client == "127.0.0.1"
    assert node.mirror.peers.client._dialler._tls.links.encrypted("127.0.0.1") is encrypted
    if not encrypted:
        await by_runtime(node)
        assert node.mirror.traces.over[-1].client == ""


async def test_nodes_that_require_tls_are_asked_to_dial_back_over_tls(start_node: Any) -> None:
    require, plain = await start_node(host=HOLDER, tls=consul_tls(REQUIRE)), await start_node(host=ASKER)
    ours = consul_tls(REQUIRE).client()
    for node, contexts, says in (
        (require, (ours,), "answers 404"),  # these nodes dial nobody back
        (require, (ours, None), "answers 404"),
        (plain, (ours, None), "answers 404"),
        (plain, (ours,), "does not speak TLS"),
        (require, (None,), "answers 403"),
    ):
        check = await trio.to_thread.run_sync(
            partial(dial_back.ask, dial_back.Peer(*node.address, contexts), "127.0.0.9", 5000)
        )
        assert re.search(says, check.says), check
