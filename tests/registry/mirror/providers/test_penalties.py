"""A penalty counts for the address that was asked: nobody can name another node's address to have that barred."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.providers import penalties as module
from spegel_consul.registry.mirror.providers.penalties import HUNG, LIED, SLOW, Penalties

from ...conftest import NOT_FOUND, head
from ...image import BLOB_PATH, DIGEST, LAYER, get

ADDRESSES = [("10.0.0.1", 5000), ("10.0.0.2", 5000), ("10.0.0.2", 5001), ("fd00::1", 5000), ("fd00::2", 5000)]
ADDRESS = st.sampled_from(ADDRESSES)
RECORDS = st.lists(
    st.builds(Provider, st.sampled_from(["honest", "liar", "fresh"]), ADDRESS, st.none() | ADDRESS), max_size=12
)
"""What anybody may write, or tell on: any peer id with any two addresses."""
DEEDS = ["lied", "broken", "hung", "not reached", "slow", "nothing"]


def note(penalties: Penalties, deed: str, provider: Provider) -> None:
    match deed:
        case "lied":
            penalties.lied(provider)
        case "slow":
            penalties.slow(provider)
        case _:
            reached = deed != "not reached"
            penalties.failed(provider, hung=deed == "hung" or not reached, broken=deed == "broken", reached=reached)


@given(st.dictionaries(ADDRESS, st.sampled_from(DEEDS)), RECORDS)
def test_whoever_is_named_only_the_address_that_was_asked_pays(deeds: dict[tuple[str, int], str], records: Any) -> None:
    async def run() -> None:
        penalties, asked = Penalties(), set()
        for record in records:
            if not penalties.bars(record):
                asked.add(record.registry)
                note(penalties, deeds.get(record.registry, "nothing"), record)
        for address in ADDRESSES:
            for name in ("honest", "liar", "fresh"):
                for other in (None, *ADDRESSES):
                    provider = Provider(name, address, other)
                    deed = deeds.get(address, "nothing") if address in asked else "nothing"
                    assert penalties.bars(provider) == (deed in ("lied", "broken", "hung", "not reached"))
                    assert penalties.misbehaved(provider) == (deed in ("lied", "broken", "hung"))
                    assert penalties.is_slow(provider) == (deed == "slow")

    trio.run(run)


async def test_a_penalty_ends_and_a_lesser_one_does_not_shorten_it(autojump_clock: trio.testing.MockClock) -> None:
    penalties, provider = Penalties(), Provider("peer", ADDRESSES[0])
    penalties.lied(provider)
    penalties.failed(provider, hung=True)
    penalties.slow(provider)
    await trio.sleep(SLOW + 1)
    assert penalties.bars(provider)
    assert not penalties.is_slow(provider)
    await trio.sleep(LIED - SLOW)
    assert not penalties.bars(provider)


async def test_what_is_remembered_is_bounded_and_lies_are_remembered_longest(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST", 8)
    penalties, liar = Penalties(), Provider("liar", ADDRESSES[0])
    penalties.lied(liar)
    others = [Provider("peer", ("10.1.0.1", port)) for port in range(1, 50)]
    for other in others:
        penalties.failed(other, hung=True)
    assert penalties.bars(liar)
    assert penalties.bars(others[-1])
    assert sum(map(penalties.bars, others)) == 7
    await trio.sleep(HUNG + 1)
    assert penalties.bars(liar)


LIE = head(200, len(LAYER), f"Docker-Content-Digest: {DIGEST}"), bytes(len(LAYER))
NAMES = [("liar", "honest"), ("honest", "honest")]
"""The peer id that the liar's record has: its own, or that of the node whose address it names besides."""


@pytest.mark.parametrize(("name", "honest"), NAMES, ids=["own id", "the other's id"])
async def test_a_liar_that_names_an_honest_address_besides_does_not_get_it_barred(
    pair: Any, start_peer: Any, name: str, honest: str
) -> None:
    holder, asker = pair
    liar = await start_peer(*LIE)
    asker.router.providers = [Provider(name, liar.address, holder.address)]
    first = await get(asker, BLOB_PATH)
    assert first.status_code == 404 or first.content == LAYER
    asker.router.providers = [Provider(honest, holder.address)]
    assert (await get(asker, BLOB_PATH)).content == LAYER
    asker.router.providers = [Provider("fresh", liar.address)]
    for each in asker.mirror.peers.recent.get(DIGEST):
        asker.mirror.peers.recent.drop(DIGEST, each)
    assert (await get(asker, BLOB_PATH)).status_code == 404
    assert len(liar.requests) == 1


async def test_a_liar_that_names_an_honest_address_as_its_own_does_not_get_it_barred(
    pair: Any, start_peer: Any
) -> None:
    holder, asker = pair
    liar = await start_peer(*LIE)
    asker.router.providers = [Provider("liar", holder.address, liar.address)]
    assert (await get(asker, BLOB_PATH)).content == LAYER
    asker.router.providers = [Provider("liar", liar.address, holder.address)]
    await get(asker, BLOB_PATH)
    assert not asker.mirror.peers.penalties.bars(Provider("honest", holder.address))
    assert not asker.mirror.peers.penalties.bars(Provider("liar", holder.address, liar.address))


@pytest.mark.parametrize("size", [1000, len(LAYER)], ids=["read whole", "held"])
@pytest.mark.parametrize("lies", [True, False], ids=["lies", "has nothing"])
async def test_one_address_under_many_ids_is_asked_once(pair: Any, start_peer: Any, size: int, lies: bool) -> None:
    """Otherwise its ids use up the attempts, and the node that has the content is not asked."""
    holder, asker = pair
    digest = holder.store.add_content(LAYER[:size])
    bad = await start_peer(*((head(200, size), bytes(size)) if lies else (NOT_FOUND,)))
    names = [Provider(f"id{number}", bad.address) for number in range(3)]
    asker.router.providers = [*names, Provider("honest", holder.address)]
    response = await get(asker, f"/v2/library/app/blobs/{digest}?ns=docker.io")
    assert (response.status_code, response.content) == (200, LAYER[:size])
    assert len(bad.requests) == 1


async def test_a_record_with_a_dead_secondary_address_hides_no_other_record(pair: Any) -> None:
    """Anybody may write a record that names a node's address and another's, and it may come first."""
    holder, asker = pair
    dead = [("127.0.0.1", port) for port in (1, 2, 3)]
    asker.router.providers = [Provider("liar", dead[0], dead[1]), Provider("honest", dead[0], holder.address)]
    assert (await get(asker, BLOB_PATH)).content == LAYER
    asker.mirror.peers.recent.drop(DIGEST, Provider("honest", holder.address))
    asker.router.providers = [Provider("honest", dead[0], dead[2]), Provider("honest", dead[0], holder.address)]
    assert (await get(asker, BLOB_PATH)).content == LAYER
