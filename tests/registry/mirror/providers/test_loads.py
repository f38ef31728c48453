import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.providers import hedging, loads
from spegel_consul.registry.mirror.providers.loads import Loads
from spegel_consul.registry.mirror.validate_head import seconds

PEERS = [Provider(f"peer{number}", (f"10.0.0.{number}", 5000)) for number in range(8)]


def chosen(core: Loads, waiting: list[Provider], now: float = 0.0) -> set[Provider]:
    return {core.choose(waiting, now) for _ in range(100)}


def test_equals_are_all_chosen() -> None:
    assert chosen(Loads(random.Random(0)), PEERS) == set(PEERS)


def test_the_less_loaded_of_two() -> None:
    core = Loads(random.Random(0))
    for peer, load in zip(PEERS, (3, 1, 2), strict=False):
        core.told(peer.registry, str(load), 0.0)
    assert chosen(core, PEERS[:2]) == {PEERS[1]}
    assert chosen(core, PEERS[:3]) == {PEERS[1], PEERS[2]}, "the most loaded one is in no pair the less loaded"


def test_a_load_is_believed_for_a_while() -> None:
    core = Loads(random.Random(0))
    core.told(PEERS[0].registry, "9", 0.0)
    core.told(PEERS[1].registry, "1", 1.0)
    assert chosen(core, PEERS[:2], loads.FRESH - 0.1) == {PEERS[1]}
    assert chosen(core, PEERS[:2], loads.FRESH) == set(PEERS[:2])


def test_a_peer_that_tells_nothing_is_neither_preferred_nor_avoided() -> None:
    core = Loads(random.Random(0))
    core.told(PEERS[0].registry, "5", 0.0)
    core.told(PEERS[1].registry, None, 0.0)
    assert chosen(core, PEERS[:2]) == set(PEERS[:2])


def test_each_question_counts_until_the_peer_tells_more() -> None:
    core = Loads(random.Random(0))
    for peer in PEERS[:2]:
        core.told(peer.registry, "1", 0.0)
    core.asked(PEERS[0].registry, 0.0)
    assert chosen(core, PEERS[:2]) == {PEERS[1]}
    core.told(PEERS[0].registry, "0", 0.1)
    assert chosen(core, PEERS[:2], 0.1) == {PEERS[0]}


@pytest.mark.parametrize("field", ["-1", "", "many", "1e9", "0x10", "٣", " 3", "1.5", None])
def test_a_load_that_is_no_number_is_ignored(field: str | None) -> None:
    core = Loads(random.Random(0))
    core.told(PEERS[0].registry, field, 0.0)
    core.told(PEERS[1].registry, "1", 0.0)
    assert chosen(core, PEERS[:2]) == set(PEERS[:2])


@pytest.mark.parametrize("field", ["1000000000", "9" * 4000])
def test_an_absurd_load_sheds_load_and_no_more(field: str) -> None:
    core = Loads(random.Random(0))
    core.told(PEERS[0].registry, field, 0.0)
    core.told(PEERS[1].registry, "7", 0.0)
    assert chosen(core, PEERS[:2]) == {PEERS[1]}
    assert core.choose(PEERS[:1], 0.0) == PEERS[0]


def test_a_busy_peer_is_chosen_after_the_others_until_its_time_has_come() -> None:
    core = Loads(random.Random(0))
    wait = core.refused(PEERS[0].registry, 1.0, 0.0)
    assert wait is not None
    assert 0.75 <= wait <= 1.25
    assert chosen(core, PEERS[:2], 0.7) == {PEERS[1]}
    assert chosen(core, PEERS[:1], 0.7) == {PEERS[0]}, "there is no other"
    assert chosen(core, PEERS[:2], 1.3) == set(PEERS[:2])


@given(st.text(max_size=40) | st.floats().map(str) | st.integers().map(str))
def test_any_hint_is_a_wait_of_at_most_some_seconds(text: str) -> None:
    wait = Loads(random.Random(0)).refused(PEERS[0].registry, seconds(text), 0.0)
    assert wait is not None
    assert 0.75 * loads.SHORTEST_WAIT <= wait <= 1.25 * loads.LONGEST_WAIT


def test_a_peer_that_does_nothing_but_refuse_is_not_waited_for() -> None:
    core = Loads(random.Random(0))
    last = loads.DOUBTED_AFTER
    waits = {now: core.refused(PEERS[0].registry, 1.0, float(now)) for now in range(int(last) + 1)}
    assert [waits[now] is not None for now in (0, int(last) - 1, int(last))] == [True, True, False]
    core.told(PEERS[0].registry, "2", last + 1)
    assert core.refused(PEERS[0].registry, 1.0, last + 2) is not None


def test_refusals_long_ago_say_nothing_of_a_peer_that_nobody_asked_since() -> None:
    core = Loads(random.Random(0))
    assert core.refused(PEERS[0].registry, 1.0, 0.0) is not None
    assert core.refused(PEERS[0].registry, 1.0, loads.DOUBTED_AFTER + 10) is not None


def test_a_request_that_waits_for_long_outlives_no_doubt() -> None:
    assert loads.DOUBTED_AFTER > hedging.PROMISED_PATIENCE


def test_strangers_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    core = Loads(random.Random(0))
    for number in range(10_000):
        core.told((f"10.{number >> 8}.{number & 255}.1", 5000), "1", 0.0)
    assert len(core._known) <= loads._MOST
    core.told(PEERS[0].registry, "1", 1e6)
    core.told(PEERS[1].registry, "1", 1e6)
    assert len(core._known) <= loads._MOST - 2
