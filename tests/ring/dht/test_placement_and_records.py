import random

from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.ring.dht.placement import Placement
from spegel_consul.ring.dht.records import Records

positions = st.integers(0, 2**256 - 1)
near = st.one_of(positions, st.integers(0, 300), st.integers(2**255, 2**255 + 50))


@given(st.sets(near, max_size=80), near, st.integers(1, 25))
def test_the_closest_are_those_of_least_xor_distance(present: set[int], target: int, count: int) -> None:
    placement = Placement()
    for position in present:
        placement.add(position.to_bytes(32, "big"), position)
    expected = sorted(present, key=lambda position: position ^ target)[:count]
    assert placement.closest(target, count) == [position.to_bytes(32, "big") for position in expected]


@given(st.sets(near, max_size=80), near, st.lists(near, max_size=20), st.integers(1, 25))
def test_a_peer_concerns_no_target_out_of_its_reach(
    present: set[int], position: int, targets: list[int], count: int
) -> None:
    placement = Placement()
    for other in present - {position}:
        placement.add(other.to_bytes(32, "big"), other)
    first, last = placement.reach(position, count)
    assert first <= position <= last
    peer = position.to_bytes(32, "big")
    placement.add(peer, position)
    assert placement.reach(position, count) == (first, last), "the same before it comes and after it has come"
    for target in [*targets, first - 1, last + 1]:
        if 0 <= target < 2**256 and not first <= target <= last:
            assert peer not in placement.closest(target, count)


def test_the_reach_shrinks_as_the_ring_grows() -> None:
    placement, rng = Placement(), random.Random(5)
    for size in (0, 20, 200, 2000):
        while len(placement) < size:
            position = rng.getrandbits(256)
            placement.add(position.to_bytes(32, "big"), position)
        reaches = [placement.reach(rng.getrandbits(256)) for _ in range(100)]
        share = sum(last + 1 - first for first, last in reaches) / len(reaches) / 2**256
        assert share <= min(1, 100 / max(1, size)), size


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=60))
def test_peers_come_and_go(changes: list[tuple[bool, int]]) -> None:
    placement, expected = Placement(), set()
    for adding, position in changes:
        if adding:
            placement.add(bytes([position]), position)
            expected.add(position)
        else:
            placement.discard(position)
            expected.discard(position)
    assert len(placement) == len(expected)
    assert placement.closest(0, 100) == [bytes([position]) for position in sorted(expected)]


def test_a_record_lasts_for_its_validity_from_the_last_announcement() -> None:
    records = Records(validity=100)
    assert records.add(b"key", b"peer", 0)
    assert records.providers(b"key", 99) == [b"peer"]
    assert records.providers(b"key", 100) == []
    assert records.add(b"key", b"peer", 99)
    assert records.providers(b"key", 198) == [b"peer"]
    assert len(records) == 1
    list(records.sweep(198))
    assert len(records) == 1
    list(records.sweep(199))
    assert len(records) == 0


def test_neither_one_peer_nor_all_fill_the_memory() -> None:
    records = Records(capacity=10, capacity_per_peer=4)
    assert [records.add(b"%d" % number, b"flood", 0) for number in range(6)] == [True] * 4 + [False] * 2
    assert records.add(b"0", b"flood", 1), "a known record is renewed all the same"
    for number in range(6):
        assert records.add(b"key", b"peer %d" % number, 0)
    assert not records.add(b"key", b"one too many", 0)
    list(records.sweep(10_000))
    assert records.add(b"key", b"one too many", 10_000)


def test_a_peer_that_leaves_is_forgotten_at_once_and_its_share_is_free_after_a_sweep() -> None:
    records = Records(capacity_per_peer=1000)
    for number in range(1000):
        assert records.add(b"%d" % number, b"leaver", 0)
        assert records.add(b"%d" % number, b"other", 0)
    records.forget(b"leaver", 1)
    records.forget(b"nobody", 1)
    assert all(records.providers(b"%d" % number, 1) == [b"other"] for number in range(1000))
    assert not records.add(b"too early", b"leaver", 2), "so a peer that leaves again and again has one share"
    list(records.sweep(2))
    assert len(records) == records.held_of(b"other") == 1000
    assert records.held_of(b"leaver") == 0
    assert not records._void, "nothing stays of a peer without records"
    assert all(records.add(b"again %d" % number, b"leaver", 2) for number in range(1000))
    assert not records.add(b"one too many", b"leaver", 2)


def test_a_peer_that_comes_back_before_the_sweep_is_named_for_what_it_announces_again() -> None:
    records = Records(capacity_per_peer=2)
    for key in (b"kept", b"gone"):
        assert records.add(key, b"peer", 0)
    records.forget(b"peer", 10)
    assert records.add(b"kept", b"peer", 20), "in the place of its old record"
    for _ in range(2):
        assert records.providers(b"kept", 30) == [b"peer"]
        assert records.providers(b"gone", 30) == []
        list(records.sweep(30))
    assert len(records) == 1
    assert records.add(b"new", b"peer", 30)


def test_what_a_popular_key_has_of_a_peer_that_left_is_hidden_too() -> None:
    records = Records()
    peers = [b"peer %d" % number for number in range(300)]
    for peer in peers:
        records.add(b"key", peer, 0)
    records.forget(peers[7], 1)
    assert sorted(records.providers(b"key", 2)) == sorted(peers[:7] + peers[8:])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 50), st.booleans()), max_size=60))
def test_records_behave_like_a_plain_table(changes: list[tuple[int, int, int, bool]]) -> None:
    records, table, now = Records(validity=40), {}, 0
    rng = random.Random(1)
    for key, peer, step, leaves in changes:
        now += step
        if leaves:
            records.forget(b"%d" % peer, now)
            table = {at: expiry for at, expiry in table.items() if at[1] != peer}
        else:
            records.add(b"%d" % key, b"%d" % peer, now)
            table[key, peer] = now + 40
        if rng.random() < 0.3:
            list(records.sweep(now))
        for asked in range(4):
            expected = {b"%d" % p for (k, p), expiry in table.items() if k == asked and expiry > now}
            assert set(records.providers(b"%d" % asked, now)) == expected
