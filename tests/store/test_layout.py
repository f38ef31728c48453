from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from conformance.store import SampleImage, StoreSuite, eventually, running, sample_image
from structlog.testing import capture_logs

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown
from spegel_consul.oci.media import OCI_INDEX
from spegel_consul.store import Store, documents, layout
from spegel_consul.store.layout import LayoutStore


class LayoutShelf:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._images: dict[str, SampleImage] = {}
        self._write()

    def store(self, accept: Callable[[str], bool]) -> Store:
        return LayoutStore(self.path, accept, interval=0.02)

    async def add(self, image: SampleImage) -> None:
        for digest, body in image.blobs.items():
            self._file(digest).write_bytes(body)
        self._images[image.name] = image
        self._write()

    async def remove(self, image: SampleImage) -> None:
        del self._images[image.name]
        self._write()
        for digest in image.blobs.keys() - {other for left in self._images.values() for other in left.blobs}:
            self._file(digest).unlink()

    async def lose(self, digest: Digest) -> None:
        self._file(digest).unlink()

    def _file(self, digest: Digest) -> Path:
        return self.path / "blobs" / digest.algorithm / digest.encoded

    def _write(self) -> None:
        (self.path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        entries = [
            {
                "mediaType": OCI_INDEX,
                "digest": image.root,
                "size": len(image.blobs[image.root]),
                "annotations": {"org.opencontainers.image.ref.name": image.name},
            }
            for image in self._images.values()
        ]
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))


@pytest.fixture
def shelf(tmp_path: Path) -> LayoutShelf:
    return LayoutShelf(tmp_path / "layout")


class TestLayoutStore(StoreSuite):
    @pytest.fixture
    def shelf(self, tmp_path: Path) -> LayoutShelf:
        return LayoutShelf(tmp_path / "layout")


async def test_missing_directory_is_a_problem_until_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "layout"
    with capture_logs() as logs:
        async with running(LayoutStore(path, interval=0.01)) as store:
            assert str(path) in (store.problem or "")
            shelf = LayoutShelf(path)
            image = sample_image()
            await shelf.add(image)
            await eventually(lambda: store.resolve(image.name))
            assert store.problem is None
            shutil.rmtree(path)
            await eventually(lambda: store.problem)
            assert store.keys() == frozenset()
    assert [entry["log_level"] for entry in logs if entry["log_level"] != "debug"] == ["warning", "info", "warning"]


@pytest.mark.parametrize("garbage", ["", '{"manifests": [', "[]", '{"manifests": {}}', "\0", "[" * 100_000])
async def test_half_written_index_leaves_the_last_good_one(shelf: LayoutShelf, garbage: str) -> None:
    image = sample_image()
    await shelf.add(image)
    with capture_logs() as logs:
        async with running(shelf.store(lambda name: True)) as store:
            good = (shelf.path / "index.json").read_text()
            (shelf.path / "index.json").write_text(garbage)
            await eventually(lambda: any(entry["log_level"] == "warning" for entry in logs))
            assert store.resolve(image.name) == image.root
            assert store.problem is None
            (shelf.path / "index.json").write_text(good)
            await eventually(lambda: any(entry["log_level"] == "info" for entry in logs))
    assert len([entry for entry in logs if entry["log_level"] == "warning"]) == 1


async def test_an_index_that_is_missing_for_a_moment_withdraws_nothing(
    shelf: LayoutShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some writers remove index.json before they write the new one."""
    image = sample_image()
    await shelf.add(image)
    looks: list[frozenset[object]] = []
    async with running(shelf.store(lambda name: True)) as store:

        def look(path: Path, known: object) -> object:
            looks.append(store.keys())
            if len(looks) in (2, 4):
                raise FileNotFoundError
            return real(path, known)

        real: Callable[..., object] = layout.look
        before = store.keys()
        monkeypatch.setattr(layout, "look", look)
        with trio.fail_after(10):
            while len(looks) < 6:
                await trio.sleep(0.01)
        assert looks[:6] == [before] * 6
        assert store.problem is None


async def test_a_layout_that_go_has_emptied(shelf: LayoutShelf) -> None:
    await shelf.add(sample_image())
    async with running(shelf.store(lambda name: True)) as store:
        (shelf.path / "index.json").write_text('{"schemaVersion": 2, "manifests": null}')
        await eventually(lambda: not store.images())
        assert store.problem is None


async def test_an_image_without_layers(shelf: LayoutShelf) -> None:
    config = b"{}"
    body = json.dumps(
        {"schemaVersion": 2, "config": {"digest": Digest.of(config), "size": len(config)}, "layers": None}
    ).encode()
    root = Digest.of(body)
    image = SampleImage(
        "docker.io/library/empty:v1", root, root, Digest.of(config), (), {root: body, Digest.of(config): config}, {}
    )
    await shelf.add(image)
    async with running(shelf.store(lambda name: True)) as store:
        await eventually(lambda: store.resolve(image.name))
        assert store.keys() == {image.name, *image.blobs}


async def test_stray_files_do_no_harm(shelf: LayoutShelf) -> None:
    image = sample_image()
    (shelf.path / "blobs" / "README").touch()
    (shelf.path / "blobs" / "sha256" / "partial.tmp").write_bytes(b"half")
    (shelf.path / "blobs" / "md5").mkdir()
    (shelf.path / "blobs" / "md5" / "0").touch()
    await shelf.add(image)
    async with running(shelf.store(lambda name: True)) as store:
        assert store.problem is None
        assert store.keys() == frozenset(image.blobs) | {image.name}


async def test_truncated_blob_is_not_served(shelf: LayoutShelf) -> None:
    image = sample_image()
    await shelf.add(image)
    async with running(shelf.store(lambda name: True)) as store:
        (shelf.path / "blobs" / "sha256" / image.layers[0].encoded).write_bytes(b"short")
        with pytest.raises(BlobUnknown):
            async with store.open(image.layers[0]):
                pass
        assert not {image.layers[0]} & store.keys()


@pytest.mark.parametrize("part", ["layer", "manifest"])
async def test_a_blob_that_is_written_under_its_final_name(shelf: LayoutShelf, part: str) -> None:
    image = sample_image()
    digest = image.layers[0] if part == "layer" else image.manifest
    await shelf.add(image)
    path = shelf.path / "blobs" / "sha256" / digest.encoded
    path.write_bytes(image.blobs[digest][:50])
    async with running(shelf.store(lambda name: True)) as store:
        await trio.sleep(0.1)
        with path.open("ab") as file:
            file.write(image.blobs[digest][50:])
        await eventually(lambda: (found := store.describe(digest)) and found.size == len(image.blobs[digest]))
        await eventually(lambda: store.resolve(image.name) == image.root)
        assert store.keys() == frozenset(image.blobs) | {image.name}
        async with store.open(digest):
            pass


async def test_a_blob_that_grew_unseen_is_right_after_its_first_request(
    shelf: LayoutShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_WRITTEN_WITHIN", 0.0)
    image = sample_image()
    await shelf.add(image)
    path = shelf.path / "blobs" / "sha256" / image.layers[0].encoded
    path.write_bytes(b"short")
    async with running(shelf.store(lambda name: True)) as store:
        path.write_bytes(image.blobs[image.layers[0]])
        await trio.sleep(0.1)
        with pytest.raises(BlobUnknown):
            async with store.open(image.layers[0]):
                pass
        await eventually(lambda: store.describe(image.layers[0]))
        async with store.open(image.layers[0]):
            pass


async def test_garbage_at_the_start_is_a_problem(shelf: LayoutShelf) -> None:
    (shelf.path / "index.json").write_text("{")
    async with running(shelf.store(lambda name: True)) as store:
        assert "index.json" in (store.problem or "")


async def test_entries_without_a_full_name_are_served_by_digest(shelf: LayoutShelf) -> None:
    image = sample_image()
    await shelf.add(image)
    index = json.loads((shelf.path / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    index["manifests"] += [{"digest": "sha256:short"}, {"digest": 3}, 5, None]
    (shelf.path / "index.json").write_text(json.dumps(index))
    async with running(shelf.store(lambda name: True)) as store:
        assert store.images() == ()
        assert store.keys() == frozenset(image.blobs)
        descriptor = store.describe(image.root)
        assert descriptor is not None
        assert descriptor.media_type == OCI_INDEX


async def test_a_manifest_that_could_not_be_read_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, image, fails, original = LayoutShelf(tmp_path), sample_image(), True, documents.open_blob
    await shelf.add(image)

    def open_blob(path: Path, size: int) -> int:
        if fails:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return original(path, size)

    monkeypatch.setattr(documents, "open_blob", open_blob)
    monkeypatch.setattr(layout, "_READ_AGAIN", 0.1)
    monkeypatch.setattr(layout, "_WRITTEN_WITHIN", 0.0)
    with capture_logs() as logs:
        async with running(LayoutStore(tmp_path, interval=0.02)) as store:
            assert (store.images(), store.problem) == ((), None)
            await trio.sleep(0.5)
            fails = False
            await eventually(lambda: store.resolve(image.name) == image.root)
            assert store.problem is None
    assert ["can't be read" in each["reason"] for each in logs if each["log_level"] == "warning"] == [True]


async def test_a_disk_that_does_not_answer_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, image, dead = LayoutShelf(tmp_path), sample_image(), threading.Event()
    original = documents.open_blob
    monkeypatch.setattr(documents, "WITHIN", 0.2)
    monkeypatch.setattr(documents, "open_blob", lambda *given: dead.wait() and original(*given))
    async with running(LayoutStore(tmp_path, interval=0.02)) as store:
        await shelf.add(image)
        await eventually(lambda: "no answer" in (store.problem or ""))
        dead.set()
        await eventually(lambda: store.resolve(image.name) == image.root)
        assert store.problem is None
