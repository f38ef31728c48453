"""``--verify=auto``: a large blob for the own runtime is not hashed, until the runtime asks for one again."""

from __future__ import annotations

import random
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.registry.mirror.providers.unverified_transfers import ASKED_AGAIN, HASHED, UnverifiedTransfers

from ...conftest import head
from ...image import BLOB_PATH, DIGEST, LAYER, get

AUTO = MirrorSettings(verify_first=0, runtime_verifies=True)
WRONG = bytes([LAYER[0] ^ 1]) + LAYER[1:]
OTHER = random.Random(9).randbytes(len(LAYER))
OTHER_PATH = f"/v2/library/app/blobs/{Digest.of(OTHER)}?ns=docker.io"
ONE, TWO = Provider("one", ("10.0.0.1", 1)), Provider("two", ("10.0.0.2", 1))
BLOB = Digest.of(b"layer")


def test_senders_of_what_is_asked_for_again_are_suspects_once() -> None:
    checks = UnverifiedTransfers()
    assert checks.asked(BLOB, 1) == ()
    checks.sent(BLOB, [ONE, TWO], 1)
    assert checks.asked(Digest.of(b"other"), 2) == ()
    assert not checks.hashes(ONE, 2)
    assert checks.asked(BLOB, 2) == (ONE, TWO)
    assert checks.asked(BLOB, 3) == ()
    assert checks.hashes(Provider("under another id", ONE.registry), 1 + HASHED)
    assert not checks.hashes(ONE, 2 + HASHED)


def test_a_digest_that_was_in_the_store_or_is_asked_for_late_raises_no_suspicion() -> None:
    checks = UnverifiedTransfers()
    checks.sent(BLOB, [ONE], 1)
    checks.arrived({"docker.io/library/app:1", BLOB})
    assert checks.asked(BLOB, 2) == ()
    checks.sent(BLOB, [ONE], 1)
    checks.arrived({"docker.io/library/app:1"})
    assert checks.asked(BLOB, 1 + ASKED_AGAIN) == ()
    assert not checks.hashes(ONE, 2)


async def test_a_wrong_blob_is_fetched_from_another_peer_the_next_time_and_its_sender_is_hashed(
    start_node: Any, start_peer: Any
) -> None:
    asker, honest = await start_node(settings=AUTO), await start_node()
    honest.store.add_content(LAYER)
    liar = await start_peer(
        lambda request: [head(200, len(LAYER)), WRONG if str(DIGEST).encode() in request else LAYER]
    )
    asker.router.knows(liar.address, honest)
    assert (await get(asker, BLOB_PATH)).content == WRONG
    assert asker.metric("spegel_verification_failures_total") == 0
    response = await get(asker, BLOB_PATH)
    assert response.content == LAYER
    assert response.headers["x-spegel-served-by"] == f"127.0.0.1:{honest.address[1]}"
    # nothing is proven yet, but the liar's other blobs are hashed from now on, and the first wrong one bars it
    assert not asker.mirror.peers.penalties.bars(Provider("peer0", liar.address))
    asker.router.knows(liar.address)
    with pytest.raises(httpx.RemoteProtocolError):
        await get(asker, OTHER_PATH)
    assert asker.mirror.peers.penalties.bars(Provider("peer0", liar.address))


async def test_without_verification_a_second_request_accuses_nobody(start_node: Any, pair: Any) -> None:
    holder, _ = pair
    asker = await start_node(settings=MirrorSettings(verify=False))
    asker.router.knows(holder)
    for _ in range(2):
        assert (await get(asker, BLOB_PATH)).content == LAYER
    assert not asker.mirror.peers.suspects.of(DIGEST)
    assert not asker.mirror.peers.unverified.hashes(Provider("peer0", holder.address), trio.current_time())


async def test_the_only_peer_is_asked_again_and_its_blob_is_hashed(start_node: Any, start_peer: Any) -> None:
    asker = await start_node(settings=AUTO)
    liar = await start_peer(head(200, len(LAYER)), WRONG)
    asker.router.knows(liar.address)
    assert (await get(asker, BLOB_PATH)).content == WRONG
    assert (await get(asker, BLOB_PATH)).status_code == 404
    assert asker.metric("spegel_verification_failures_total") == 1


async def test_a_blob_that_the_store_had_meanwhile_is_not_hashed_again(start_node: Any, pair: Any) -> None:
    holder, _ = pair
    asker = await start_node(settings=AUTO)
    asker.router.knows(holder)
    for _ in range(3):
        assert (await get(asker, BLOB_PATH)).content == LAYER
        assert DIGEST in asker.mirror.peers.unverified._sent
        asker.store.add_content(LAYER)
        with trio.fail_after(10):
            while DIGEST in asker.mirror.peers.unverified._sent:
                await trio.sleep(0.005)
        asker.store.remove_content(Digest(DIGEST))
    assert not asker.mirror.peers.suspects.of(DIGEST)


async def test_a_client_of_another_machine_gets_verified_bytes(start_node: Any, start_peer: Any) -> None:
    asker = await start_node(settings=AUTO)
    liar = await start_peer(head(200, len(LAYER)), WRONG)
    asker.router.knows(liar.address)
    transport = httpx.AsyncHTTPTransport(verify=False, local_address="127.0.0.2")
    async with httpx.AsyncClient(transport=transport, base_url=asker.url) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(BLOB_PATH)
    assert asker.metric("spegel_verification_failures_total") == 1


async def test_blobs_up_to_the_limit_are_held(start_node: Any, start_peer: Any) -> None:
    asker = await start_node(settings=MirrorSettings(runtime_verifies=True))
    liar = await start_peer(head(200, len(LAYER)), WRONG)
    asker.router.knows(liar.address)
    assert (await get(asker, BLOB_PATH)).status_code == 404
