"""Files that are followed: a change is seen once, a file that can't be used never replaces the value in use."""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path

import pytest
import trio

from spegel_consul.disk.followed_file import FollowedFile, stamps


def parsed(path: Path) -> int:
    return int(path.read_text())


def followed(path: Path, **options: object) -> FollowedFile[int]:
    return FollowedFile(partial(stamps, (path,)), partial(parsed, path), **options)  # type: ignore[arg-type]


async def until_well(file: FollowedFile[int]) -> list[int]:
    """The values of the looks until there is no problem any more."""
    found = [await file.look()]
    with trio.fail_after(30):
        while file.problem is not None:
            await trio.sleep(0.001)
            found.append(await file.look())
    return [value for value in found if value is not None]


async def test_a_value_is_new_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    file = followed(path)
    assert (await file.look(), await file.look(), file.problem) == (1, None, None)
    path.write_text("22")
    assert (await file.look(), await file.look()) == (22, None)


async def test_what_was_loaded_at_the_start_is_not_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    for twice in (False, True):
        file = followed(path, twice=twice)
        assert file.load() == 1
        assert (await file.look(), file.problem) == (None, None)


async def test_a_file_that_cannot_be_used_is_read_again_until_it_can(tmp_path: Path) -> None:
    path = tmp_path / "file"
    file = followed(path)
    for _ in range(2):
        assert (await file.look(), file.problem) == (None, "No such file or directory")
    path.write_text("one")
    for _ in range(2):
        assert await file.look() is None
        assert isinstance(file.failure, ValueError)
        assert "'one'" in str(file.problem)
    path.write_text("1")
    assert (await file.look(), file.problem) == (1, None)


async def test_the_same_file_put_back_is_no_change_and_no_problem(tmp_path: Path) -> None:
    known = [1]
    file: FollowedFile[int] = FollowedFile(lambda: known[0], lambda: 10 // (known[0] - 2) if known[0] == 1 else int(""))
    assert file.load() == -10
    known[0] = 2
    assert (await file.look(), file.problem is None) == (None, False)
    known[0] = 1
    assert (await file.look(), file.problem) == (None, None)


async def test_seen_twice_before_it_counts(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    file = followed(path, twice=True)
    file.load()
    for text in ("12", "123", "1234"):  # while it is being written
        path.write_text(text)
        assert await file.look() is None
    assert (await file.look(), await file.look()) == (1234, None)
    path.write_text("")
    assert (await file.look(), file.problem) == (None, None)
    assert (await file.look(), file.problem is None) == (None, False)
    path.write_text("12345")
    assert await file.look() is None
    assert (await file.look(), file.problem) == (12345, None)


async def test_a_replacement_that_keeps_time_and_length_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    status = path.stat()
    file = followed(path)
    assert file.load() == 1
    with trio.fail_after(5):
        while path.stat().st_ctime_ns == status.st_ctime_ns:  # the kernel's clock goes in steps
            path.write_text("2")
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            await trio.sleep(0.001)
    assert await file.look() == 2


async def test_a_write_during_the_read_is_the_next_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")

    def overtaken() -> str:
        text = path.read_text()
        if text == "1":
            path.write_text("22")
        return text

    file = FollowedFile(partial(stamps, (path,)), overtaken)
    assert [await file.look() for _ in range(3)] == ["1", "22", None]


async def test_each_of_several_files_counts_and_one_may_be_missing(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_text("1")
    file = FollowedFile(partial(stamps, paths), lambda: sum(path.exists() for path in paths))
    assert (await file.look(), await file.look()) == (1, None)
    paths[1].write_text("1")
    assert await file.look() == 2
    paths[0].unlink()
    assert await file.look() == 1


async def test_a_disk_that_hangs_is_a_problem_and_costs_its_time_once() -> None:
    hanging, asked = threading.Event(), list[int]()

    def hangs() -> int:
        asked.append(1)
        hanging.wait(60)
        return 1

    file = FollowedFile(hangs, lambda: 7, within=0.05)
    try:
        with trio.fail_after(30):
            for _ in range(3):
                assert await file.look() is None
                assert str(file.problem).startswith("no answer within 0.05 s")
    finally:
        hanging.set()
    assert len(asked) == 1
    assert await until_well(file) == [7]


async def test_a_value_that_is_read_too_late_is_that_of_the_next_look() -> None:
    slow, read = threading.Event(), threading.Event()

    def slowly() -> int:
        slow.wait(60)
        read.set()
        return 7

    file = FollowedFile(lambda: 1, slowly, within=0.05)
    assert await file.look() is None
    slow.set()
    await trio.to_thread.run_sync(read.wait)
    assert await until_well(file) == [7]


async def test_a_fault_of_the_program_is_not_a_problem_of_the_file() -> None:
    def wrong() -> int:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await FollowedFile(lambda: 1, wrong).look()
