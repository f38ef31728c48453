import gc
import math
import random
import sys
import tracemalloc
from typing import Any

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


def test_a_withdrawal_looks_only_at_the_peers_that_were_told() -> None:
    peers, visits = [b"peer %d" % number for number in range(1000)], 0

    class Counting(dict[bytes, Any]):
        def values(self) -> Any:
            nonlocal visits
            for value in super().values():
                visits += 1
                yield value

    subject = Announcements(lambda at: peers[at % 1000 :][:2], ttl=TTL, rng=random.Random(3))
    subject._targets = Counting()
    subject.add(keys(2000))
    told = sum(len(batch.keys) for batch in deliver(subject, 0))
    visits = 0
    subject.remove(keys(2000))
    assert visits <= 1000
    assert sum(len(batch.withdrawn) for batch in deliver(subject, 1)) == told > 3900


def test_a_key_that_goes_while_it_is_to_be_renewed_is_withdrawn() -> None:
    subject = announcements([b"a"])
    subject.add([b"x"])
    deliver(subject, 0)
    (batch,) = subject.batches(TTL)
    subject.failed(batch, TTL)
    subject.remove([b"x"])
    assert [(batch.keys, batch.withdrawn) for batch in deliver(subject, 1.5 * TTL)] == [((), (b"x",))]
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
    assert max(map(sys.getsizeof, (target.pending, target.withdrawn, target.told, target.stale))) < 1000


def test_a_key_and_a_peer_that_knows_it_cost_a_few_bytes() -> None:
    peers = [b"peer %d" % number for number in range(20)]
    subject = announcements(peers)
    tracemalloc.start()
    try:
        subject.add(keys(2000))
        deliver(subject, 0)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used < 2000 * 20 * 20, "a dictionary of the keys of each peer takes 36 bytes for each"


def test_keys_that_come_and_go_leave_nothing_and_are_renewed_once() -> None:
    subject = announcements([b"a"])
    subject.add([b"stays"])
    for now in range(5):
        subject.add([b"x"])
        deliver(subject, now)
        subject.remove([b"x"])
    subject.add([b"x"])
    deliver(subject, 5)
    renewed = [key for now in range(6, int(2 * TTL)) for batch in deliver(subject, now) for key in batch.keys]
    assert sorted(renewed) == [b"stays", b"stays", b"x", b"x"]
    assert not subject._targets[b"a"].stale


def test_keys_that_go_do_not_pile_up() -> None:
    subject = announcements([b"a"])
    subject.add(keys(100))
    deliver(subject, 0)
    for number in range(1000):
        passing = [b"passing %d" % number]
        subject.add(passing)
        deliver(subject, number / 10)
        subject.remove(passing)
        deliver(subject, number / 10)
    target = subject._targets[b"a"]
    assert sum(len(told) for _, told in target.told) < 150
    assert len(target.stale) < 50
    assert sorted(key for batch in deliver(subject, TTL) for key in batch.keys) == sorted(keys(100))


def test_any_order_of_events_tells_each_peer_what_it_is_responsible_for() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        peers = [b"a", b"b", b"c"]
        subject = announcements(peers)
        known: dict[bytes, dict[bytes, float]] = {peer: {} for peer in peers}
        own: set[bytes] = set()
        now = 0.0
        for _ in range(60):
            now += rng.choice([0.1, 5, 200])
            match rng.randrange(5):
                case 0 | 1:
                    new = rng.sample(keys(12), 3)
                    own.update(new)
                    subject.add(new)
                case 2:
                    gone = rng.sample(keys(12), 2)
                    own.difference_update(gone)
                    subject.remove(gone)
                case 3:
                    peer = rng.choice(peers)
                    known[peer].clear()
                    subject.lost(peer)
                    subject.place(subject.keys())
                case 4:
                    for batch in subject.batches(now):
                        told = Batch(batch.peer, batch.keys[: rng.randrange(3)])
                        subject.failed(batch, now, told=told)
                        known[batch.peer] |= dict.fromkeys(told.keys, now)
                    continue
            while subject.wake_at() <= now:
                for batch in subject.batches(now):
                    known[batch.peer] |= dict.fromkeys(batch.keys, now)
                    for key in batch.withdrawn:
                        known[batch.peer].pop(key)
                    subject.told(batch, now)
        quiet = now + 60  # longer than the longest back-off
        while subject.wake_at() < quiet:
            now = max(now, subject.wake_at())
            for batch in subject.batches(now):
                known[batch.peer] |= dict.fromkeys(batch.keys, now)
                for key in batch.withdrawn:
                    known[batch.peer].pop(key)
                subject.told(batch, now)
        for peer, records in known.items():
            assert set(records) == own, (seed, peer)
            assert all(now - at < TTL for at in records.values()), (seed, peer)
