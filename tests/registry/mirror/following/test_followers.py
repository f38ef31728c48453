from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown
from spegel_consul.oci.path import parse_content_path
from spegel_consul.registry.mirror.followers import LAG, MOST, MOST_BEHIND, MOST_UNASKED, Followers
from spegel_consul.zerocopy.growing_file import GrowingFile
from spegel_consul.zerocopy.position import Position

REQUEST = parse_content_path(f"/v2/library/app/blobs/{Digest.of(b'layer')}", "ns=docker.io")
MIB = 1 << 20
TOTAL = 1000 * MIB


class File:
    """A sparse file of any size."""

    def __init__(self) -> None:
        self.file = GrowingFile(os.memfd_create("layer"), TOTAL)

    def is_of(self, size: int) -> None:
        os.ftruncate(self.file.fd, size)


@pytest.fixture
def file() -> Iterator[File]:
    found = File()
    yield found
    found.file.close()


def move(position: Position, to: int) -> None:
    position.took(to - position.taken)
    position.gave(to - position.sent)


def test_a_follower_that_waits_is_not_behind() -> None:
    followers = Followers()
    with followers.one("n2", REQUEST) as send:
        assert (send.peer, send.request, send.sent, send.size(), send.total) == ("n2", REQUEST, 0, 0, 0)
        assert followers.live() == (send,)
        assert followers.behind(0) == followers.behind(100) == ()
    assert followers.live() == ()


def test_a_follower_is_behind_after_a_second(file: File) -> None:
    followers, position = Followers(), Position(TOTAL)
    with followers.one("n2", REQUEST) as send:
        send.begin(file.file, 0, position, 0)
        file.is_of(LAG + 1)
        assert send.lag == LAG + 1
        assert followers.behind(0.5) == followers.behind(1.0) == ()
        assert followers.behind(1.5) == ("n2",)
        move(position, 1)  # within the limit again
        assert followers.behind(1.6) == ()
        file.is_of(LAG + 2)
        assert followers.behind(2.6) == ()
        assert followers.behind(2.7) == ("n2",)
    assert followers.behind(10) == ()


def test_a_follower_that_comes_closer_keeps_up(file: File) -> None:
    followers, position = Followers(), Position(TOTAL)
    file.is_of(100 * MIB)
    with followers.one("late", REQUEST) as send:
        send.begin(file.file, 0, position, 0)
        for second in range(1, 20):
            file.is_of((100 + second) * MIB)
            move(position, 5 * second * MIB)
            assert followers.behind(second) == (), second
        assert send.lag == 24 * MIB
        assert followers.behind(21) == ("late",)  # and then it stopped
        move(position, position.sent + LAG)
        assert followers.behind(21.5) == ()


def test_a_range_lags_by_its_own_bytes_only(file: File) -> None:
    followers, position = Followers(), Position(LAG + 5)
    file.is_of(500 * MIB)
    with followers.one("n2", REQUEST) as send:
        send.begin(file.file, 400 * MIB, position, 0)
        assert (send.size(), send.lag, send.total) == (LAG + 5, LAG + 5, LAG + 5)
        move(position, 5)
        assert followers.behind(50) == ()


def test_the_slowest_are_reported_once_each(file: File) -> None:
    followers = Followers()
    file.is_of(500 * MIB)
    with ExitStack() as stack:
        for number in range(40):
            send = stack.enter_context(followers.one(f"n{number // 2}", REQUEST))
            position = Position(TOTAL)
            move(position, number * MIB)
            send.begin(file.file, 0, position, 0)
        found = followers.behind(2)
        assert found == tuple(f"n{number}" for number in range(MOST_BEHIND))


def test_a_file_that_is_lost_has_no_lag(file: File) -> None:
    followers = Followers()
    file.is_of(500 * MIB)
    with followers.one("n2", REQUEST) as send:
        send.begin(file.file, 0, Position(TOTAL), 0)
        file.file.close()
        assert send.lag == 0
        assert followers.behind(50) == ()


def test_there_are_sixty_four_at_a_time() -> None:
    followers = Followers()
    with ExitStack() as stack:
        for number in range(MOST - 1):
            stack.enter_context(followers.one(f"n{number}", REQUEST))
        with followers.one("last", REQUEST):
            assert len(followers) == MOST
            with pytest.raises(BlobUnknown, match="64 peers follow"):
                stack.enter_context(followers.one("n65", REQUEST))
        stack.enter_context(followers.one("n65", REQUEST))


def test_requests_that_come_first_leave_room_for_the_others(file: File) -> None:
    followers = Followers()
    with ExitStack() as stack:
        early = [stack.enter_context(followers.one("n2", REQUEST, asked=False)) for _ in range(MOST_UNASKED)]
        with pytest.raises(BlobUnknown):
            stack.enter_context(followers.one("n2", REQUEST, asked=False))
        stack.enter_context(followers.one("n3", REQUEST))
        early[0].begin(file.file, 0, Position(TOTAL), 0.0)  # the node's own runtime has asked for it now
        stack.enter_context(followers.one("n2", REQUEST, asked=False))
