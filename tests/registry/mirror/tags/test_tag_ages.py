"""What is remembered of the tags that the mirror passed on."""

from __future__ import annotations

import json

import pytest
import trio
from fakes.memory_store import MemoryStore
from trio.testing import MockClock

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.reference import Reference
from spegel_consul.registry.mirror.providers.provider_cache import FRESH
from spegel_consul.registry.mirror.tags.tag_ages import TagAges
from spegel_consul.registry.mirror.validate_head import Head

from ...image import LAYER, MANIFEST

HOUR = 3600.0


def name(number: int) -> str:
    return f"docker.io/library/app{number}:v1"


def manifest(number: int) -> bytes:
    return json.dumps(json.loads(MANIFEST) | {"annotations": {"number": str(number)}}).encode()


def passed_on(ages: TagAges, number: int, age: int = 500) -> None:
    head = Head(Digest.of(manifest(number)), "", 0, 1, 1, partial=False, tag_age=age)
    ages.passed_on(name(number), head)


async def test_tags_that_the_store_lost_are_forgotten(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    ages = TagAges(store)
    passed_on(ages, 0)
    await trio.sleep(60)
    store.add_content(LAYER)
    store.add_content(b"{}")
    store.add_image(name(0), manifest(0), age=1)
    for number in range(1, 1000):
        passed_on(ages, number)
        await trio.sleep(60)
    assert 2 <= len(ages._passed_on) < 200, "those of the last hour, and at most twice as many again"
    own = ages.own(Reference("docker.io", "library/app0", tag="v1"))
    assert own is not None
    assert own >= 500 + 999 * 60, "a tag that is there keeps the age with which it was passed on"


async def test_a_tag_that_the_runtime_has_not_written_yet_is_kept(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    ages = TagAges(store)
    for number in range(1000):
        passed_on(ages, number)
    await trio.sleep(HOUR - 1)
    passed_on(ages, 1000)
    assert len(ages._passed_on) == 1001


async def test_an_agreement_that_is_over_is_forgotten(autojump_clock: MockClock) -> None:
    ages = TagAges(None)
    for number in range(100):
        ages.agreed(name(number), Digest.of(b"{}"))
        assert ages.agreed_on(name(number)) == Digest.of(b"{}")
        await trio.sleep(FRESH)
    assert len(ages._agreed) == 1


@pytest.mark.parametrize("store", [None, MemoryStore()])
async def test_a_tag_that_is_in_no_store_has_no_age(store: MemoryStore | None) -> None:
    ages = TagAges(store)
    passed_on(ages, 1)
    assert ages.own(Reference("docker.io", "library/app1", tag="v1")) is None
