import math
import random
import sys

from spegel_consul.ring.dht.announcements import BATCH, Announcements, Batch

TTL = 900.0


def announcements(peers: list[bytes]) -> Announcements:
    return Announcements(lambda at: list(peers), ttl=TTL, rng=random.Random(3))


def keys(count: int, prefix: bytes = b"key") -> list[bytes]:
    return [prefix + b" %d" % number for number in range(count)]


def deliver(subject: Announcements, now: float) -> list[Batch]:
    """Acknowledge all that there is to tell, and return it."""
    told = []
    while batches := subject.batches(now):
        for batch in batches:
            subject.told(batch, now)
        told += batches
    return told


def test_each_of_the_closest_is_told_in_batches() -> None:
    subject = announcements([b"a", b"b"])
    subject.add(keys(BATCH + 50))
    first = subject.batches(0)
    assert sorted(batch.peer for batch in first) == [b"a", b"b"]
    assert all(len(batch.keys) == BATCH for batch in first)
    assert subject.batches(0) == [], "one batch at a time for each"
    subject.told(first[0], 0)
    (second,) = subject.batches(0)
    assert (second.peer, len(second.keys)) == (first[0].peer, 50)


def test_what_is_told_is_not_told_again_but_additions_are() -> None:
    subject = announcements([b"a"])
    subject.add([b"x"])
    deliver(subject, 0)
    subject.add([b"x", b"y"])
    assert [batch.keys for batch in deliver(subject, 1)] == [(b"y",)]
    assert subject.pending == 0


def test_what_is_not_acknowledged_is_sent_again_ever_more_rarely() -> None:
    subject = announcements([b"a"])
    subject.add([b"x"])
    now, waits = 0.0, []
    for _ in range(12):
        (batch,) = subject.batches(now)
        subject.failed(batch, now)
        assert subject.batches(now) == []
        waits.append(subject.wake_at() - now)
        now = subject.wake_at()
    assert 0.1 < waits[0] < 0.4
    assert 20 < waits[-1] <= 40
    assert [batch.keys for batch in deliver(subject, now)] == [(b"x",)]
    subject.add([b"y"])
    assert [batch.keys for batch in deliver(subject, now)] == [(b"y",)], "the back-off is over"


def test_a_part_that_was_acknowledged_is_not_sent_again_with_the_rest() -> None:
    subject = announcements([b"a"])
    subject.add([b"gone"])
    deliver(subject, 0)
    subject.remove([b"gone"])
    subject.add(keys(BATCH + 1))
    now, waits, told = 0.0, [], []
    for _ in range(10):
        (batch,) = subject.batches(now)
        assert batch.withdrawn == (b"gone",)
        told += batch.keys
        subject.failed(batch, now, told=Batch(b"a", batch.keys))
        waits.append(subject.wake_at() - now)
        now = subject.wake_at()
    assert told == keys(BATCH + 1), "each once, though the peer refuses the withdrawal"
    assert waits[-1] > 20, "which is repeated ever more rarely"
    (batch,) = subject.batches(now)
    subject.told(batch, now)
    assert (batch.keys, batch.withdrawn, subject.batches(now)) == ((), (b"gone",), [])


def test_records_are_renewed_before_they_expire_and_not_all_at_once() -> None:
    peers = [b"peer %d" % number for number in range(20)]
    subject = announcements(peers)
    subject.add(keys(10))
    deliver(subject, 0)
    renewed = {}
    while subject.wake_at() < TTL:
        now = subject.wake_at()
        for batch in deliver(subject, now):
            assert batch.peer not in renewed
            renewed[batch.peer] = now
    assert set(renewed) == set(peers)
    assert min(renewed.values()) >= 0.7 * TTL
    assert len(set(renewed.values())) == 20


def test_a_new_member_is_told_only_what_it_is_responsible_for() -> None:
    closest = {True: [b"a"], False: [b"b"]}
    subject = Announcements(lambda at: closest[at % 2 == 0], ttl=TTL, rng=random.Random(3))
    subject.add(keys(40))
    deliver(subject, 0)
    closest[True] = [b"new", b"a"]
    subject.place(subject.keys())
    told = deliver(subject, 1)
    assert {batch.peer for batch in told} == {b"new"}
    assert 0 < sum(len(batch.keys) for batch in told) < 40


def test_who_is_not_responsible_any_more_is_not_renewed() -> None:
    peers = [b"a"]
    subject = announcements(peers)
    subject.add([b"x"])
    deliver(subject, 0)
    peers[:] = [b"b"]
    subject.place(subject.keys())
    assert {batch.peer for batch in deliver(subject, 1)} == {b"b"}
    assert {batch.peer for batch in deliver(subject, TTL)} == {b"b"}


def test_a_member_that_died_and_came_back_is_told_all_again() -> None:
    subject = announcements([b"a"])
    subject.add([b"x"])
    deliver(subject, 0)
    subject.lost(b"a")
    assert subject.wake_at() == math.inf
    subject.place(subject.keys())
    assert [batch.keys for batch in deliver(subject, 1)] == [(b"x",)]


def test_a_withdrawn_key_is_renewed_no_more_and_those_who_know_it_are_told() -> None:
    subject = announcements([b"a"])
    subject.add([b"x", b"y", b"z"])
    subject.remove([b"z"])  # before anybody was told
    (batch,) = subject.batches(0)
    assert batch.keys == (b"x", b"y")
    subject.remove([b"x", b"never there"])  # while it is being told
    subject.told(batch, 0)
    assert b"x" not in subject
    (batch,) = subject.batches(0)
    assert (batch.keys, batch.withdrawn) == ((), (b"x",))
    subject.failed(batch, 0)
    (batch,) = subject.batches(1)
    assert batch.withdrawn == (b"x",), "it is said again until it is acknowledged"
    subject.told(batch, 1)
    assert [batch.keys for batch in deliver(subject, TTL)] == [(b"y",)]
    subject.remove([b"y"])
    assert [batch.withdrawn for batch in deliver(subject, TTL)] == [(b"y",)]
    assert subject.wake_at() == math.inf


def test_a_key_that_comes_back_is_not_withdrawn() -> None:
    subject = announcements([b"a"])
    subject.add([b"x"])
    deliver(subject, 0)
    subject.remove([b"x"])
    subject.add([b"x"])
    assert [(batch.keys, batch.withdrawn) for batch in deliver(subject, 1)] == [((b"x",), ())]


def test_an_answer_from_one_that_died_meanwhile_changes_nothing() -> None:
    subject = announcements([b"a"])
    subject.add([b"x"])
    (batch,) = subject.batches(0)
    subject.lost(b"a")
    subject.told(batch, 0)
    subject.failed(batch, 0)
    assert subject.pending == 0


def test_who_leaves_has_nothing_and_knows_whom_it_told() -> None:
    subject = announcements([b"a", b"b"])
    subject.add(keys(3))
    first, second = subject.batches(0)
    subject.told(first, 0)
    assert sorted(subject.clear()) == [b"a", b"b"], "the other may have heard of it too"
    subject.told(second, 0)
    subject.place(keys(3))
    assert (len(subject), subject.pending, subject.batches(10_000)) == (0, 0, [])
    assert subject.wake_at() == math.inf


def test_no_table_stays_for_keys_that_are_told() -> None:
    subject = announcements([b"a"])
    subject.add(keys(2000))
    deliver(subject, 0)
    subject.remove(keys(2000))
    deliver(subject, 1)
    target = subject._targets[b"a"]
    assert max(sys.getsizeof(target.pending), sys.getsizeof(target.withdrawn)) < 1000
