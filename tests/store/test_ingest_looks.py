"""Looks at the directory of ingests: when, how many, and what they cost."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from conformance.downloads import BODY
from structlog.testing import capture_logs

from spegel_consul.oci.digest import Digest
from spegel_consul.store.containerd import ingests
from spegel_consul.store.containerd.ingests import Ingests
from tests.store.observed_ingests import Observed, observed

__all__ = ["observed"]


async def test_callers_share_a_look(observed: Observed, mock_clock: trio.testing.MockClock) -> None:
    bodies = [f"body {number}".encode() for number in range(500)]
    digests = [observed.content.begin(body).digest for body in bodies]
    absent = Digest.of(b"absent")

    async def ask(digests: Sequence[Digest]) -> None:
        async with trio.open_nursery() as nursery:
            for digest in digests:
                nursery.start_soon(_open_and_close, observed.ingests, digest)
                nursery.start_soon(observed.ingests.at_work)

    await ask([*digests[:50], absent])
    first = observed.looks
    assert first <= 3, "those that wait for a look take the same next one"
    await ask([*digests[:50], absent])
    assert observed.looks == first, "asked again within 50 ms"
    mock_clock.jump(ingests.SHARED * 1.01)
    await ask([*digests[:50], absent])
    assert observed.looks == first + 1
    late = observed.content.begin(b"a moment ago")
    mock_clock.jump(0.001)
    file = await observed.ingests.open(late.digest)
    assert file is not None, "a digest that nobody has asked for gets a look of its own"
    file.close()
    assert observed.looks == first + 2


async def _open_and_close(found: Ingests, digest: Digest) -> None:
    file = await found.open(digest)
    if file is not None:
        file.close()


async def test_refs_are_read_once(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = ingests.IngestDirectory("k8s.io")
    for number in range(500):
        observed.content.begin(b"%d" % number, namespace="k8s.io" if number % 2 else "moby")
    assert len(directory.look(observed.content.root).names) == 250
    read: list[object] = []
    monkeypatch.setattr(ingests.foreign_files, "read", lambda *arguments, **_: read.append(arguments) or b"")
    assert len(directory.look(observed.content.root).names) == 250
    assert not read
    monkeypatch.undo()
    late = observed.content.begin(b"late")
    ref = (late.path / "ref").read_bytes()
    (late.path / "ref").write_bytes(b"")
    assert late.digest not in directory.look(observed.content.root).names
    (late.path / "ref").write_bytes(ref)
    assert late.digest in directory.look(observed.content.root).names, "an empty ref is one that is being written"


async def test_a_disk_that_hangs_costs_one_thread(observed: Observed, mock_clock: trio.testing.MockClock) -> None:
    ingest = observed.content.begin(BODY)
    assert await observed.ingests.at_work() == 0
    observed.hangs = threading.Event()
    mock_clock.jump(1)
    answers: list[object] = []

    async def ask() -> None:
        answers.append(await observed.ingests.open(ingest.digest))
        answers.append(await observed.ingests.at_work())

    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not answers
            mock_clock.jump(ingests.WITHIN)
        assert sorted(map(str, answers)) == ["0"] * 20 + ["None"] * 20
        await ask()
    assert observed.looks == 2, "one thread hangs, and the others are told at once"
    assert len([entry for entry in logs if entry["log_level"] == "warning"]) == 1
    observed.hangs.set()
    observed.hangs = None
    for _ in range(1000):
        if (file := await observed.ingests.open(ingest.digest)) is not None:
            file.close()
            return
        await trio.testing.wait_all_tasks_blocked(0.01)
    pytest.fail("the disk is back, and its downloads are not")


async def test_a_directory_that_is_not_there_has_no_downloads(tmp_path: Path) -> None:
    with capture_logs() as logs:
        for root in (tmp_path / "absent", None):
            found = Ingests(lambda root=root: root, "k8s.io", lambda digest: None)
            assert await found.at_work() is None
            assert await found.open(Digest.of(b"x")) is None
    assert not logs


async def test_a_directory_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "ingest").write_text("")
    found = Ingests(lambda: tmp_path, "k8s.io", lambda digest: None)
    with capture_logs() as logs:
        for _ in range(3):
            assert await found.open(Digest.of(b"x")) is None
    (warning,) = logs
    assert "downloads can't be read" in warning["event"]
