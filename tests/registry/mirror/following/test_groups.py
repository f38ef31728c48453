"""The group of a digest: the manifest that names it, as far as this node knows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.oci.path import ContentRequest, parse_content_path
from spegel_consul.registry.mirror.following.follows import MOST
from spegel_consul.registry.mirror.following.group_work import GroupWork
from spegel_consul.registry.mirror.groups import _SEARCH_EVERY, Groups

from .growing_source import DownloadingStore

BASE, TOP = b"base" * 100, b"top" * 100


def manifest(*layers: bytes, **fields: object) -> bytes:
    return json.dumps(
        {"layers": [{"digest": Digest.of(each), "size": len(each)} for each in layers], **fields}
    ).encode()


FIRST, SECOND = manifest(BASE), manifest(BASE, TOP)


def blob(content: bytes) -> ContentRequest:
    return parse_content_path(f"/v2/library/app/blobs/{Digest.of(content)}", "ns=docker.io")


def of_manifest(content: bytes) -> ContentRequest:
    return parse_content_path(f"/v2/library/app/manifests/{Digest.of(content)}", "ns=docker.io")


@pytest.fixture
def store(tmp_path: Path) -> DownloadingStore:
    return DownloadingStore(tmp_path / "store")


async def test_a_layer_belongs_to_the_manifest_that_was_learnt_last(store: DownloadingStore) -> None:
    groups = Groups(store)
    assert await groups.of(blob(BASE)) == Digest.of(BASE), "a blob of no known manifest is its own group"
    for each in (FIRST, SECOND):
        groups.learn(Digest.of(each), each)
        assert await groups.of(blob(BASE)) == Digest.of(each)
    assert await groups.of(of_manifest(FIRST)) == Digest.of(FIRST)
    assert groups.contents(Digest.of(SECOND)) == {
        Digest.of(SECOND): len(SECOND),
        Digest.of(BASE): len(BASE),
        Digest.of(TOP): len(TOP),
    }
    assert groups.contents(Digest.of(TOP)) == {Digest.of(TOP): 0}


@pytest.mark.parametrize("junk", [b"", b"[]", b"{", b"\xff", b"7", b'{"layers": 7}', b"[" * 100_000])
async def test_what_is_no_manifest_groups_nothing(store: DownloadingStore, junk: bytes) -> None:
    groups = Groups(store)
    groups.learn(Digest.of(junk), junk)
    assert await groups.of(blob(BASE)) == Digest.of(BASE)


@pytest.mark.parametrize("where", ["in the index", "only in a file"])
async def test_a_manifest_that_came_from_upstream_is_read(store: DownloadingStore, where: str) -> None:
    groups = Groups(store)
    groups.learn(Digest.of(FIRST), FIRST)
    await groups.of(of_manifest(SECOND))
    if where == "in the index":
        store.add_content(SECOND)
    else:
        store.commit(SECOND)
    assert await groups.of(blob(BASE)) == Digest.of(SECOND)
    looks = store.looks
    await groups.of(blob(TOP))
    assert store.looks == looks, "it is read once"


async def test_a_manifest_that_is_not_complete_or_wrong_is_not_believed(store: DownloadingStore) -> None:
    groups = Groups(store)
    await groups.of(of_manifest(SECOND))
    store.download(SECOND, len(SECOND))
    assert await groups.of(blob(TOP)) == Digest.of(TOP)
    await trio.sleep(0.1)
    store.commit(SECOND).write_bytes(manifest(TOP).ljust(len(SECOND)))
    await trio.sleep(0.1)
    assert await groups.of(blob(TOP)) == Digest.of(TOP)


async def test_a_manifest_that_never_comes_is_not_looked_for_all_the_time(store: DownloadingStore) -> None:
    groups = Groups(store)
    await groups.of(of_manifest(SECOND))
    for _ in range(20):
        await groups.of(blob(BASE))
    assert store.looks <= 2
    for _ in range(12):
        await trio.sleep(0.06)
        await groups.of(blob(BASE))
    assert store.looks <= 8


async def test_a_slow_manifest_is_read_though_other_images_are_pulled_meanwhile(store: DownloadingStore) -> None:
    groups = Groups(store)
    await groups.of(of_manifest(SECOND))
    for number in range(12):
        await groups.of(blob(b"%d" % number))
        await trio.sleep(0.08)
    store.commit(SECOND)
    with trio.fail_after(20):
        while await groups.of(blob(TOP)) != Digest.of(SECOND):
            await trio.sleep(0.05)


async def test_of_several_groups_at_work_the_same_one_counts_at_each_node(store: DownloadingStore) -> None:
    at_work: set[str] = set()
    groups = Groups(store, at_work)
    first, second = sorted([FIRST, SECOND], key=Digest.of)
    for each in (first, second):
        groups.learn(Digest.of(each), each)
    assert await groups.of(blob(BASE)) == Digest.of(second), "the last one"
    for active, counts in ((first, first), (second, first)):
        at_work.add(Digest.of(active))
        assert await groups.of(blob(BASE)) == Digest.of(counts)
    at_work.remove(Digest.of(first))
    assert await groups.of(blob(BASE)) == Digest.of(second)


async def test_the_work_on_a_group(store: DownloadingStore) -> None:
    work, contents = GroupWork(store), {"junk": 5, **{str(Digest.of(each)): len(each) for each in (SECOND, BASE, TOP)}}
    store.add_content(SECOND)
    nothing = await work.look(contents, [Digest.of(TOP)])
    assert (nothing.serves, nothing.have, nothing.working) == (False, len(SECOND), False)
    assert nothing.left == 5 + len(BASE) + len(TOP)
    path = store.download(TOP, 100)
    store.download(BASE, len(BASE))
    before = store.looks
    found = await work.look(contents, [Digest.of(TOP)])
    assert (found.serves, found.have, found.working) == (True, len(SECOND) + len(BASE) + 100, True)
    assert found.left == 5 + len(TOP) - 100
    assert store.looks == before + 1
    # a download that ends without its bytes is none; what was committed stays known without another look
    path.unlink()
    path.touch()
    store.abort(TOP)
    store.abort(BASE)
    ended = await work.look(contents, [Digest.of(TOP)])
    assert (ended.serves, ended.have, ended.working) == (False, len(SECOND) + len(BASE), False)


async def test_a_manifest_that_the_store_had_before(store: DownloadingStore) -> None:
    store.add_content(FIRST, OCI_MANIFEST)
    store.add_content(SECOND, OCI_MANIFEST)
    store.add_content(b"no manifest", OCI_MANIFEST)
    groups = Groups(store)
    assert await groups.of(blob(TOP)) == Digest.of(SECOND)
    assert groups.contents(Digest.of(SECOND))[Digest.of(TOP)] == len(TOP)
    assert await groups.of(blob(b"of no manifest")) == Digest.of(b"of no manifest")


async def test_the_store_is_not_searched_all_the_time(store: DownloadingStore, autojump_clock: MockClock) -> None:
    groups = Groups(store)
    assert await groups.of(blob(TOP)) == Digest.of(TOP)
    store.add_content(SECOND, OCI_MANIFEST)
    assert await groups.of(blob(TOP)) == Digest.of(TOP)
    await trio.sleep(_SEARCH_EVERY)
    assert await groups.of(blob(TOP)) == Digest.of(SECOND)


async def test_a_manifest_that_the_runtime_asks_for_goes_before_a_stored_one(store: DownloadingStore) -> None:
    store.add_content(FIRST, OCI_MANIFEST)
    groups = Groups(store)
    groups.learn(Digest.of(SECOND), SECOND)
    assert await groups.of(blob(BASE)) == Digest.of(SECOND)


async def test_what_the_store_lost_is_forgotten(store: DownloadingStore, autojump_clock: MockClock) -> None:
    groups = Groups(store)
    for number in range(100):
        top = b"%d" % number
        body = manifest(BASE, top)
        digest = store.add_content(body, OCI_MANIFEST)
        await trio.sleep(_SEARCH_EVERY)
        assert await groups.of(blob(top)) == digest
        store.remove_content(digest)
    assert (len(groups._read), len(groups._stored)) == (1, 2), "the last one's"


async def test_each_group_at_work_keeps_its_contents(store: DownloadingStore) -> None:
    groups = Groups(store)
    manifests = [manifest(*(b"%d %d" % (number, layer) for layer in range(15))) for number in range(MOST)]
    for each in manifests:
        groups.learn(Digest.of(each), each)
    assert all(len(groups.contents(Digest.of(each))) == 16 for each in manifests)
    assert groups.known(Digest.of(b"0 0")) == Digest.of(manifests[0])


async def test_a_manifest_whose_reading_was_cut_short_is_read_again(
    store: DownloadingStore, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_content(SECOND, OCI_MANIFEST)
    groups, read, slow = Groups(store), Groups._manifest, True

    async def from_a_slow_disk(self: Groups, digest: Digest) -> bytes | None:
        if slow:
            await trio.sleep(60)
        return await read(self, digest)

    monkeypatch.setattr(Groups, "_manifest", from_a_slow_disk)
    assert await groups.of(blob(TOP)) == Digest.of(TOP)
    slow = False
    await trio.sleep(_SEARCH_EVERY)
    assert await groups.of(blob(TOP)) == Digest.of(SECOND)


async def test_a_manifest_that_is_slow_to_read_does_not_keep_others_from_being_read(
    store: DownloadingStore, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tops = [b"%d" % number for number in range(20)]
    digests = {store.add_content(manifest(BASE, top), OCI_MANIFEST) for top in tops}
    groups, read = Groups(store), Groups._manifest
    (slow, *_) = sorted(digests)

    async def from_a_bad_sector(self: Groups, digest: Digest) -> bytes | None:
        if digest == slow:
            await trio.sleep(60)
        return await read(self, digest)

    monkeypatch.setattr(Groups, "_manifest", from_a_bad_sector)
    for _ in range(3):
        for top in tops:
            await groups.of(blob(top))
        await trio.sleep(_SEARCH_EVERY)
    assert {groups.known(Digest.of(top)) for top in tops} & digests == digests - {slow}
