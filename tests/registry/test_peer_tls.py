"""One port for TLS and plain text: who is served how, and who is asked how.

A client that connects to 127.0.0.2 has the address 127.0.0.1, so it counts as another machine; a runtime of that node
connects from 127.0.0.2 itself."""

from __future__ import annotations

import ssl
from typing import Any

import httpx
import pytest
import trio
from lab.connect_authority import HOURS, ConnectAuthority

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.authority.consul_tls import ConsulTls
from spegel_consul.http import registry_connection
from spegel_consul.http.peer_client import PeerClient, PeerLimits
from spegel_consul.http.peer_tls import Encryption
from spegel_consul.http.registry_connection import Unreachable
from spegel_consul.peers import PeerError
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from tests.registry.encrypted_nodes import (
    ASKER,
    AUTHORITY,
    HOLDER,
    LAYER,
    PATH,
    PREFER,
    REQUIRE,
    by_runtime,
    by_stranger,
    consul_tls,
)

from .conftest import head


def consul_or_none(encryption: Encryption | None) -> ConsulTls | None:
    return consul_tls(encryption) if encryption is not None else None


@pytest.mark.parametrize("verify_first", [0, 32 << 20], ids=["streamed", "held"])
@pytest.mark.parametrize(
    ("asks", "serves", "encrypted"),
    [
        (None, None, None),
        (None, PREFER, False),
        (None, REQUIRE, "refused"),
        (PREFER, None, False),
        (PREFER, PREFER, True),
        (PREFER, REQUIRE, True),
        (REQUIRE, None, "refused"),
        (REQUIRE, PREFER, True),
        (REQUIRE, REQUIRE, True),
    ],
)
async def test_who_serves_whom(
    start_node: Any, asks: Encryption | None, serves: Encryption | None, encrypted: object, verify_first: int
) -> None:
    ours, theirs = consul_or_none(asks), consul_or_none(serves)
    holder = await start_node(host=HOLDER, tls=theirs)
    asker = await start_node(host=ASKER, tls=ours, settings=MirrorSettings(verify_first=verify_first))
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    for _ in range(3):
        response = await by_runtime(asker)
        if encrypted == "refused":
            assert response.status_code == 404
        else:
            assert response.content == LAYER
    if encrypted != "refused":
        part = await by_runtime(asker, range="bytes=1000000-2000000")
        assert (part.status_code, part.content) == (206, LAYER[1_000_000:2_000_001])
        # asked for by this node's own address, and by that of the other
        assert ours is None or ours.links.encrypted(HOLDER) is encrypted
        assert theirs is None or theirs.links.encrypted("127.0.0.1") is encrypted
    assert (await by_runtime(holder)).content == LAYER


@pytest.mark.parametrize("path", [PATH, "/v2/", "/v2/library/app/manifests/v1?ns=docker.io", "/id", "/dial-back"])
async def test_strangers_in_plain_text_are_told_why_they_are_refused(start_node: Any, path: str) -> None:
    node = await start_node(host=HOLDER, tls=consul_tls(REQUIRE))
    node.store.add_content(LAYER)
    refused = await by_stranger(node, path)
    assert refused.status_code == 403
    assert refused.json()["errors"][0]["message"] == "other machines are served over TLS only"
    for health in ("/readyz", "/livez"):
        assert (await by_stranger(node, health)).text == "ok\n"
    async with httpx.AsyncClient(verify=False, trust_env=False) as client:
        assert (await client.head(f"{node.url}{path}")).status_code == 403
        # nothing of a body stays in the connection
        assert (await client.post(f"{node.url}{path}", content=b"GET / HTTP/1.1\r\n\r\n" * 100)).status_code == 403
    assert (await by_runtime(node, "/v2/")).status_code == 200


@pytest.mark.parametrize("encryption", [PREFER, REQUIRE])
async def test_certificates_that_are_refused(start_node: Any, encryption: Encryption) -> None:
    node = await start_node(host=HOLDER, tls=consul_tls(encryption))
    node.store.add_content(LAYER)
    nameless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nameless.check_hostname, nameless.verify_mode = False, ssl.CERT_NONE
    stranger = ConnectAuthority(AUTHORITY.trust_domain)
    good = f"spiffe://{AUTHORITY.trust_domain}/ns/default/dc/dc1/svc/spegel"
    for context in (
        nameless,
        trusting(consul_tls(REQUIRE, stranger)),
        consul_tls(REQUIRE, leaf=AUTHORITY.leaf("web")).client(),
        consul_tls(REQUIRE, leaf=AUTHORITY.leaf(uris=(good, good.replace("spegel", "web")))).client(),
        consul_tls(REQUIRE, leaf=AUTHORITY.leaf(uris=("spiffe://other.consul/ns/default/dc/dc1/svc/spegel",))).client(),
        trusting(consul_tls(REQUIRE, leaf=AUTHORITY.leaf(begins=-9 * HOURS, ends=-1))),
        trusting(consul_tls(REQUIRE, leaf=AUTHORITY.leaf(begins=HOURS))),
    ):
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await by_stranger(node, tls=context)
    assert (await by_stranger(node, tls=consul_tls(REQUIRE).client())).content == LAYER


def trusting(tls: ConsulTls) -> ssl.SSLContext:
    """The context of a client that believes everything, so that the server has to refuse it."""
    assert tls._identity is not None
    context = tls._identity.client
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize("encryption", [PREFER, REQUIRE])
async def test_another_service_is_not_asked(start_node: Any, encryption: Encryption) -> None:
    web = consul_tls(REQUIRE, leaf=AUTHORITY.leaf("web"))
    web.accepts = lambda certificate: True  # type: ignore[method-assign]
    holder = await start_node(host=HOLDER, tls=web)
    holder.store.add_content(LAYER)
    asker = await start_node(host=ASKER, tls=consul_tls(encryption))
    asker.router.knows(holder)
    assert (await by_runtime(asker)).status_code == 404


@pytest.mark.parametrize(("encryption", "status"), [(PREFER, 200), (REQUIRE, 404)])
@pytest.mark.parametrize("expired", ["asker", "holder"])
async def test_a_certificate_that_has_expired(
    start_node: Any, encryption: Encryption, status: int, expired: str
) -> None:
    """Nodes notice that of their own; the others only see it in the handshake."""
    old = AUTHORITY.leaf(begins=-9 * HOURS, ends=-1)
    for notices in (True, False):
        sides = {}
        for side in ("asker", "holder"):
            sides[side] = consul_tls(PREFER if side == "holder" else encryption, leaf=old if side == expired else None)
            if not notices:
                sides[side]._clock = lambda: 0.0
        holder = await start_node(host=HOLDER, tls=sides["holder"])
        asker = await start_node(host=ASKER, tls=sides["asker"])
        holder.store.add_content(LAYER)
        asker.router.knows(holder)
        for _ in range(2):
            assert (await by_runtime(asker)).status_code == status
        assert (await by_runtime(holder)).content == LAYER


async def test_a_node_of_which_plain_text_is_remembered_requires_tls_now(start_node: Any) -> None:
    holder, ours = await start_node(host=HOLDER), consul_tls(PREFER)
    asker = await start_node(host=ASKER, tls=ours)
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    assert (await by_runtime(asker)).content == LAYER
    assert ours.links.encrypted(HOLDER) is False
    holder.stop.set()
    after = await start_node(host=HOLDER, tls=consul_tls(REQUIRE), store=holder.store)
    client = asker.mirror.peers.client
    client._dialler._ask_in_plain(after.address)
    asker.router.knows(after)
    assert (await by_runtime(asker)).content == LAYER
    assert ours.links.encrypted(HOLDER) is True


async def test_plain_text_is_remembered_for_a_minute(start_peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_connection, "_PLAIN_FOR", 0.2)

    def answer(request: bytes) -> list[bytes]:
        return [head(200, 0, "Connection: close")]

    peer = await start_peer(answer)
    hellos = []
    tls = consul_tls(PREFER)
    client = PeerClient(PeerLimits(connect=0.5), tls)
    make = tls.client
    monkeypatch.setattr(tls, "client", lambda: hellos.append(1) or make())

    async def ask() -> int:
        response = await client.request(peer.address, "GET", "/", [])
        response.discard()
        return response.status

    wrapped = client._dialler._dial
    tried: list[bool] = []

    async def dial(address: tuple[str, int], context: ssl.SSLContext | None, within: float) -> Any:
        tried.append(context is not None)
        return await wrapped(address, context, within)

    monkeypatch.setattr(client._dialler, "_dial", dial)
    assert [await ask() for _ in range(3)] == [200, 200, 200]
    assert tried == [True, False, False, False]
    await trio.sleep(0.3)
    assert await ask() == 200
    assert tried[4:] == [True, False]
    client.close()


async def test_a_peer_that_says_nothing(start_peer: Any, nursery: trio.Nursery) -> None:
    """It takes the handshake for the beginning of a request that is not complete."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listeners[0].socket.getsockname()
    seen: list[bytes] = []

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            first = bytes(await stream.receive_some())
            seen.append(first[:1])
            if first[:1] == b"\x16":
                await trio.sleep_forever()
            await stream.send_all(head(200, 0))

    nursery.start_soon(trio.serve_listeners, handle, listeners)
    prefer, require = (PeerClient(PeerLimits(connect=0.1), consul_tls(each)) for each in (PREFER, REQUIRE))
    (response := await prefer.request(address, "GET", "/", [])).discard()
    assert response.status == 200
    with pytest.raises(Unreachable) as caught:
        await require.request(address, "GET", "/", [])
    assert caught.value.hung
    assert seen == [b"\x16", b"G", b"\x16"]
    prefer.close()
    nursery.cancel_scope.cancel()


async def test_a_peer_that_answers_nonsense_to_a_handshake(start_peer: Any) -> None:
    peer = await start_peer(b"\x16\x03\x01 hello\r\n\r\n")
    require = PeerClient(PeerLimits(connect=0.5), consul_tls(REQUIRE))
    with pytest.raises(PeerError, match="do not agree on TLS|did not accept"):
        await require.request(peer.address, "GET", "/", [])


async def test_a_node_without_certificate_asks_nobody(start_node: Any) -> None:
    holder = await start_node(host=HOLDER, tls=consul_tls(PREFER))
    none = ConsulTls(ConsulClient(ConsulSettings()), REQUIRE, None)
    asker = await start_node(host=ASKER, tls=none)
    holder.store.add_content(LAYER)
    own = asker.store.add_content(b"own")
    asker.router.knows(holder)
    assert (await by_runtime(asker)).status_code == 404
    assert (await by_runtime(asker, f"/v2/library/app/blobs/{own}?ns=docker.io")).content == b"own"
    assert (await by_stranger(asker)).status_code == 403
    with pytest.raises(httpx.ConnectError):
        await by_stranger(asker, tls=consul_tls(REQUIRE).client())
