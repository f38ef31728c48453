import json
import threading
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing
from structlog.testing import capture_logs

from spegel_consul.disk import foreign_files, threads
from spegel_consul.join.remembered_members import MAX_PEERS, PEERS_FILE, Remembered
from spegel_consul.peers import PeerInfo

MEMBERS = (PeerInfo("12D3KooWa", ("/ip4/10.0.0.1/tcp/5001",)), PeerInfo("12D3KooWb", ("/ip6/fd00::1/tcp/5001",)))


async def read(directory: Path | None) -> tuple[PeerInfo, ...]:
    remembered = Remembered(directory)
    await remembered.load()
    return remembered.peers


async def test_saved_members_are_there_in_the_next_run(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    assert await read(directory) == ()
    await Remembered(directory).save(MEMBERS)
    assert set(await read(directory)) == set(MEMBERS)
    assert [path.name for path in directory.iterdir()] == [PEERS_FILE]


async def test_to_have_lost_all_members_is_nothing_to_remember(tmp_path: Path) -> None:
    remembered = Remembered(tmp_path)
    await remembered.save(MEMBERS)
    await remembered.save(())
    assert set(await read(tmp_path)) == set(MEMBERS)


async def test_a_large_ring_is_remembered_in_part(tmp_path: Path) -> None:
    await Remembered(tmp_path).save([PeerInfo(f"id{number}", ("/ip4/10.0.0.1/tcp/1",)) for number in range(1000)])
    assert len(await read(tmp_path)) == MAX_PEERS


async def test_it_is_written_only_when_it_changes(tmp_path: Path) -> None:
    remembered = Remembered(tmp_path)
    await remembered.save(MEMBERS)
    (tmp_path / PEERS_FILE).unlink()
    await remembered.save(MEMBERS)
    assert not (tmp_path / PEERS_FILE).exists()


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"members": 3}',
        b'{"members": [{}]}',
        b'{"members": [3]}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
async def test_a_damaged_file_costs_one_line_in_the_log(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / PEERS_FILE).write_bytes(damaged)
    with structlog.testing.capture_logs() as logs:
        assert await read(tmp_path) == ()
    (line,) = logs
    assert line["log_level"] == "warning"
    assert PEERS_FILE in line["problem"]


async def test_a_directory_that_can_not_be_written_is_told_once(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    remembered = Remembered(blocked)
    with structlog.testing.capture_logs() as logs:
        await remembered.save(MEMBERS)
        await remembered.save(MEMBERS[:1])
    assert len(logs) == 1


async def test_without_a_directory_nothing_is_kept() -> None:
    with trio.fail_after(1):
        await Remembered(None).save(MEMBERS)
    assert await read(None) == ()


async def test_the_file_names_ids_and_addresses(tmp_path: Path) -> None:
    await Remembered(tmp_path).save(MEMBERS[:1])
    assert json.loads((tmp_path / PEERS_FILE).read_text()) == {
        "members": [{"id": "12D3KooWa", "addrs": ["/ip4/10.0.0.1/tcp/5001"]}]
    }


async def test_a_disk_that_does_not_answer_is_waited_for_a_moment_only(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = threading.Event()
    monkeypatch.setattr(Remembered, "_load", lambda *_: dead.wait())
    monkeypatch.setattr(Remembered, "_save", lambda *_: dead.wait())
    members = [PeerInfo("a", ("/ip4/10.0.0.1/tcp/1",))]
    remembered, began = Remembered(tmp_path), trio.current_time()
    with capture_logs() as said:
        await remembered.load()
        await remembered.save(members)
        with trio.CancelScope() as stopped:
            stopped.cancel()
            await remembered.save_last(members)
    assert trio.current_time() - began <= 3, "of virtual time"
    assert remembered.peers == ()
    assert ["no answer within 1 s" in line["problem"] for line in said] == [True], "it is said once"
    dead.set()


async def test_a_disk_that_does_not_answer_keeps_no_thread_that_others_need(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = threading.Event()
    monkeypatch.setattr(foreign_files, "write", lambda *_: dead.wait())
    remembered = Remembered(tmp_path)
    for _ in range(threads.MOST + 1):
        await remembered.save(MEMBERS)
    assert await threads.in_thread(lambda: "at once") == "at once"
    dead.set()
