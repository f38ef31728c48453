import pytest

from spegel_consul.ring.dht import claims as rules
from spegel_consul.ring.dht.claim_reports import Decision, Report, What, Why
from spegel_consul.ring.dht.claims import Claims

MIB = 1 << 20
GROUP = b"group"


class Keeper:
    """One group's keeper and its clock, with reports in few words."""

    def __init__(self) -> None:
        self.claims = Claims()
        self.now = 0.0
        self.held: dict[bytes, bytes] = {}

    def report(self, name: str, have: int = 0, **more: object) -> str:
        """The decision in one word: claim, alone, or the name of the source."""
        decision = self.decide(name, have, **more)
        return decision.sources[0].decode() if decision.what is What.FOLLOW else decision.what.name.lower()

    def decide(self, name: str, have: int = 0, **more: object) -> Decision:
        asked = {"serves": True, "working": True, **more}
        return self.claims.report(GROUP, name.encode(), Report(have=have, **asked), self.now)  # type: ignore[arg-type]

    def lost(self, name: str, source: str, why: Why = Why.CUT, have: int = 0) -> str:
        return self.report(name, have, lost=source.encode(), why=why)

    def wait(self, seconds: float, **rates: float) -> None:
        """Nodes report every two seconds; ``rates`` in MiB/s."""
        end = self.now + seconds
        while self.now < end:
            self.now += 2
            for name, rate in rates.items():
                self.held[name.encode()] = self.held.get(name.encode(), 0) + int(2 * rate * MIB)
                self.report(name, self.held[name.encode()])


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


def test_the_first_claims_and_the_others_follow_in_a_chain(keeper: Keeper) -> None:
    assert [keeper.report(name) for name in "abcd"] == ["claim", "a", "b", "c"]
    assert [keeper.report(name) for name in "dcba"] == ["c", "b", "a", "claim"]
    assert keeper.decide("d").sources == (b"c", b"b", b"a")


def test_a_node_that_cannot_serve_follows_and_is_no_source(keeper: Keeper) -> None:
    assert keeper.report("x", serves=False, working=False) == "alone"
    assert keeper.report("a") == "claim"
    assert keeper.report("x", serves=False, working=False) == "a"
    assert keeper.report("b") == "a"
    assert keeper.report("x", serves=False, working=False) == "a"


def test_groups_have_nothing_to_do_with_each_other(keeper: Keeper) -> None:
    assert keeper.report("a") == "claim"
    assert keeper.claims.report(b"other", b"b", Report(serves=True), 0.0).what is What.CLAIM


def test_chains_branch_at_their_greatest_depth(keeper: Keeper) -> None:
    names = [f"n{number}" for number in range(10)]
    sources = [keeper.report(name) for name in names]
    assert sources == ["claim", *names[:6], "n5", "n4", "n8"]


def test_a_claimer_that_is_lost_is_replaced_by_its_follower_with_all_behind_it(keeper: Keeper) -> None:
    for name in "abcd":
        keeper.report(name)
    assert keeper.lost("b", "a", have=MIB) == "claim"
    assert [keeper.report(name) for name in "cd"] == ["b", "c"]
    assert keeper.report("a", MIB) == "d", "it may follow, but is no source for a minute"
    assert keeper.report("e") == "d"


def test_a_follower_that_is_lost_is_bridged(keeper: Keeper) -> None:
    for name in "abcd":
        keeper.report(name, have=MIB)
    assert keeper.lost("c", "b", have=MIB) == "a"
    assert keeper.report("d", MIB) == "c"


def test_only_the_assigned_follower_is_believed(keeper: Keeper) -> None:
    for name in "abc":
        keeper.report(name)
    assert keeper.lost("c", "a") == "b"
    assert keeper.lost("stranger", "a") == "c"
    assert keeper.report("b") == "a"
    keeper.report("stranger", behind=(b"a", b"b", b"c", b"nobody"))
    assert keeper.report("e") == "stranger"


def test_claimers_that_give_nothing_to_three_followers_end_the_following(keeper: Keeper) -> None:
    for name in "abcd":
        keeper.report(name)
    assert keeper.lost("b", "a", Why.REFUSED) == "claim"
    assert keeper.lost("c", "b", Why.REFUSED) == "claim"
    assert keeper.lost("d", "c", Why.REFUSED) == "alone"
    assert keeper.report("e") == "alone"
    keeper.now += 61
    assert keeper.report("e") == "claim"


def test_a_follower_that_loses_every_source_is_alone_and_harms_nobody_else(keeper: Keeper) -> None:
    for number in range(12):
        keeper.report(f"n{number}")
    source = keeper.report("liar")
    for _ in range(rules.MAX_LOSSES):
        assert source not in ("alone", "claim")
        source = keeper.lost("liar", source)
    assert source == keeper.report("liar") == "alone"
    assert keeper.report("n0") == "claim"
    assert keeper.report("late") not in ("alone", "claim")


def test_a_source_with_content_followers_fails_only_for_the_one_that_lost_it(keeper: Keeper) -> None:
    names = [f"n{number}" for number in range(8)]
    for name in names:
        keeper.report(name)
    assert keeper.report("n7") == "n5"
    assert keeper.lost("n7", "n5") == "n4"
    assert keeper.report("n6") == "n5"
    assert keeper.report("late") != "n5"
    assert keeper.lost("n6", "n5") != "n5", "the second complaint is believed for all"
    assert keeper.decide("n5").sources


def test_a_lease_ends_without_reports(keeper: Keeper) -> None:
    keeper.report("a")
    keeper.now = 29
    assert keeper.report("b") == "a"
    keeper.now = 31
    assert keeper.report("b") == "claim"


def test_a_complete_source_stays_as_long_as_it_is_followed(keeper: Keeper) -> None:
    keeper.report("a", 9 * MIB, working=False)
    for _ in range(30):
        keeper.now += 2
        assert keeper.report("b", MIB) == "a"
    keeper.now += 31
    assert keeper.report("c") == "claim"


def test_a_slow_claimer_is_replaced_with_all_who_follow(keeper: Keeper) -> None:
    for name in "abc":
        keeper.report(name)
    keeper.wait(4, a=0.5, b=0.5, c=0.5)
    assert keeper.report("b", keeper.held[b"b"]) == "a", "it has just begun"
    keeper.wait(4, a=0.5, b=0.5, c=0.5)
    assert keeper.report("b", keeper.held[b"b"]) == "claim"
    assert keeper.report("c", keeper.held[b"c"]) == "b"
    keeper.wait(12, a=0.5, b=20, c=20)
    assert keeper.report("a", keeper.held[b"a"]) == "c"
    assert keeper.report("b", keeper.held[b"b"]) == "claim"


def test_a_slow_claimer_that_is_nearly_done_costs_no_other_copy(keeper: Keeper) -> None:
    def claimers(left: int) -> list[str]:
        keeper.claims, keeper.now, keeper.held = Claims(), 0.0, {}
        for name in "ab":
            keeper.report(name)
        for _ in range(5):
            keeper.wait(2, b=0.5)
            keeper.held[b"a"] = keeper.held.get(b"a", 0) + MIB
            keeper.report("a", keeper.held[b"a"], left=left)
        keeper.lost("b", "a", Why.SLOW, have=keeper.held[b"b"])
        return [name for name in "ab" if keeper.report(name, keeper.held[name.encode()], left=left) == "claim"]

    assert claimers(left=4 * MIB) == ["a"], "8 seconds more"
    assert claimers(left=20 * MIB) == ["a", "b"]
    assert claimers(left=0) == ["a", "b"], "it may be long"


def test_a_takeover_that_does_not_help_ends_soon_and_is_rare(keeper: Keeper) -> None:
    for name in "abc":
        keeper.report(name)
    seen = [("a",)]
    for _ in range(28):
        keeper.wait(2, a=0.6, b=0.6, c=0.6)
        now = tuple(name for name in "abc" if keeper.report(name, keeper.held[name.encode()]) == "claim")
        seen += [now] if now != seen[-1] else []
        slow = keeper.decide("c", keeper.held[b"c"]).slow_upstream
        assert slow == (seen == [("a",), ("a", "b"), ("a",)]), "all know it from the end of the trial on"
    assert seen == [("a",), ("a", "b"), ("a",)]
    assert keeper.report("b", keeper.held[b"b"]) == "a"


def test_a_node_that_knows_a_slow_upstream_takes_over_only_from_a_claimer_that_hangs(keeper: Keeper) -> None:
    def claimers(*willing: str) -> set[str]:
        keeper.claims, keeper.now, keeper.held = Claims(), 0.0, dict.fromkeys((b"a", b"b", b"c", b"d"), 0)
        found = set()
        for _ in range(8):
            keeper.now += 2
            for name in "abcd":
                keeper.held[name.encode()] += MIB
                if keeper.report(name, keeper.held[name.encode()], declines=name not in willing) == "claim":
                    found.add(name)
        return found

    assert claimers() == {"a"}
    assert claimers("b", "c", "d") == {"a", "b"}
    assert claimers("d") == {"a", "d"}, "the first that is willing"
    keeper.claims, keeper.now = Claims(), 0.0
    for name in "ab":
        keeper.report(name, declines=True)
    for _ in range(4):
        keeper.now += 2
        keeper.report("b", MIB, declines=True)
    assert keeper.report("b", MIB, declines=True) == "claim"


def test_a_second_claimer_that_hangs_is_replaced_at_once_too_but_not_any_number(keeper: Keeper) -> None:
    names = "abcdef"
    for name in names:
        keeper.report(name)
    claimers = ["a"]
    for number, hung in enumerate(names[:-1], 1):
        living = names[number:]
        keeper.wait(6, **dict.fromkeys(living, 20.0))  # by what is on its way
        keeper.wait(8, **dict.fromkeys(living, 0.0))
        claimers += [name for name in living if keeper.report(name, keeper.held[name.encode()]) == "claim"]
        if claimers[-1] == hung:
            break
    assert claimers == ["a", "b", "c", "d"], f"{rules.MAX_TAKEOVERS} within {rules.TAKEOVER_EVERY} s"


def test_a_complaint_of_slowness_counts_after_the_grace(keeper: Keeper) -> None:
    for name in "ab":
        keeper.report(name)
    assert keeper.lost("b", "a", Why.SLOW) == "a"
    keeper.wait(6, a=30, b=0.1)
    assert keeper.lost("b", "a", Why.SLOW, have=keeper.held[b"b"]) == "claim"


def test_followers_of_a_slow_link_are_moved_past_it(keeper: Keeper) -> None:
    for name in "abcd":
        keeper.report(name)
    keeper.wait(8, a=20, b=20, c=20, d=20)
    keeper.report("a", keeper.held[b"a"], behind=(b"b",))
    assert keeper.report("c", keeper.held[b"c"]) == "a"
    assert keeper.report("d", keeper.held[b"d"]) == "c"
    assert keeper.report("c", keeper.held[b"c"]) == "a", "one move in five seconds"


def test_of_two_followers_of_a_narrow_link_one_is_passed_on_for_good(keeper: Keeper) -> None:
    keeper.report("a", 900 * MIB, working=False)
    keeper.report("b", 0)
    keeper.report("a", 900 * MIB, working=False, behind=(b"b",))
    assert keeper.report("c", 0) == "a"
    keeper.now = 6
    keeper.report("a", 900 * MIB, working=False, behind=(b"b", b"c"))
    assert keeper.report("b", 20 * MIB) == "a"
    assert keeper.report("c", 10 * MIB) == "b"
    keeper.now = 14
    keeper.report("a", 900 * MIB, working=False, behind=(b"b",))
    assert keeper.report("b", 60 * MIB) == "a"
    assert keeper.report("c", 50 * MIB) == "b"
    assert keeper.report("d") == "c"


def test_large_groups_report_less_often(keeper: Keeper) -> None:
    pauses = [keeper.decide(f"n{number}").again for number in range(1100)]
    assert pauses[:2] == [1.0, 1.0]
    assert set(pauses[2:100]) == {2.0}
    assert pauses[700] == pytest.approx(700 / 50, abs=0.1)
    assert pauses[-1] == rules.LONGEST_PAUSE
    assert keeper.decide("n0").again == 1.0, "the claimer's rate must be known"


def test_a_new_keeper_takes_over_what_nodes_say_they_hold() -> None:
    keeper = Keeper()
    for name in "abcde":
        keeper.report(name, have=MIB)
    fresh = Keeper()
    held = {"a": "a", "b": "a", "c": "b", "d": "c", "e": "d"}
    for name in "dbeca":
        word = fresh.report(name, have=MIB, held=held[name].encode())
        assert word == ("claim" if name == "a" else held[name])
    assert [fresh.report(name, have=MIB) for name in "abcde"] == ["claim", "a", "b", "c", "d"]
    fresh.now = 11
    assert fresh.report("f", held=b"a") == "e", "a keeper that has settled decides by itself"


def test_a_new_keeper_leaves_a_node_that_cannot_serve_with_its_source() -> None:
    """Its downloads can't be seen, such as those of a Docker with graph drivers."""
    keeper = Keeper()
    assert keeper.report("docker", serves=False, working=False, held=b"a") == "a"
    assert keeper.report("a", held=b"a") == "claim"
    assert keeper.report("docker", serves=False, working=False, held=b"a") == "a"
    assert Keeper().report("docker", serves=False, working=False) == "alone"


def test_a_source_that_a_new_keeper_never_hears_of_is_forgotten() -> None:
    keeper = Keeper()
    assert keeper.report("b", have=MIB, held=b"gone") == "gone"
    keeper.now = 11
    assert keeper.report("b", have=MIB, held=b"gone") == "claim"


def test_bounds(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_GROUPS", 20)
    monkeypatch.setattr(rules, "MAX_OF_PEER", 10)
    monkeypatch.setattr(rules, "MAX_OF_GROUP", 5)

    def ask(group: int, peer: str) -> What:
        return keeper.claims.report(b"%d" % group, peer.encode(), Report(serves=True), keeper.now).what

    assert [ask(group, "a") for group in range(11)] == [What.CLAIM] * 10 + [What.ALONE]
    assert [ask(0, f"n{number}") for number in range(5)] == [What.FOLLOW] * 4 + [What.ALONE]
    assert [ask(group, f"p{group}") for group in range(20, 40)].count(What.CLAIM) == 10
    assert len(keeper.claims) == 20
    keeper.now = 61
    assert ask(50, "a") is What.CLAIM
    assert len(keeper.claims) == 1


def test_a_follower_takes_over_from_a_claimer_that_sends_no_reports(keeper: Keeper) -> None:
    for name in "abcd":
        keeper.report(name)
    keeper.wait(8, a=20, b=20, c=20, d=20)
    keeper.wait(4, b=0, c=0, d=0)
    assert keeper.report("b", keeper.held[b"b"]) == "a", "it may only be late"
    keeper.wait(4, c=0, d=0, b=0)
    assert [keeper.report(name, keeper.held[name.encode()]) for name in "bcd"] == ["claim", "b", "c"]


def test_a_claimer_whose_reports_are_lost_goes_on(keeper: Keeper) -> None:
    for name in "abc":
        keeper.report(name)
    keeper.wait(8, a=20, b=20, c=20)
    keeper.wait(16, b=20, c=20)
    assert [keeper.report(name, keeper.held[name.encode()]) for name in "bc"] == ["a", "b"]


def test_the_first_living_follower_takes_over(keeper: Keeper) -> None:
    for name in "abcde":
        keeper.report(name)
    keeper.wait(8, a=20, b=20, c=20, d=20, e=20)
    keeper.wait(8, e=0, d=0, c=0)  # a and b hang
    assert [keeper.report(name, keeper.held[name.encode()]) for name in "cde"] == ["claim", "c", "d"]


def test_a_source_that_lost_its_place_and_hangs_is_left(keeper: Keeper) -> None:
    assert [keeper.report(name) for name in "abc"] == ["claim", "a", "b"]
    assert [keeper.report(name, held=b"a") for name in "ef"] == ["a", "a"]
    keeper.now = 2
    for name in "ef":
        assert keeper.lost(name, "a") not in ("a", "alone")
    assert keeper.report("c") == "b", "it may come for another place"
    keeper.now = 4.5
    assert keeper.report("c") in ("claim", "e", "f")


def test_a_liar_uses_up_no_share_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_OF_PEER", 10)
    claims = Claims()

    def ask(group: int, peer: bytes, held: bytes = b"") -> What:
        return claims.report(b"%d" % group, peer, Report(serves=True, held=held), 0.0).what

    assert [ask(group, b"liar", held=b"victim") for group in range(11)] == [What.FOLLOW] * 10 + [What.ALONE]
    assert ask(20, b"victim") is What.CLAIM
    assert ask(0, b"victim", held=b"victim") is What.CLAIM
    # a peer that reports an entry which another one caused takes it over, as far as its share goes
    assert [ask(group, b"victim") for group in range(1, 11)].count(What.ALONE) == 2
    assert claims.report(b"last", b"victim", Report(serves=True), 61.0).what is What.CLAIM


@pytest.mark.parametrize(("chain", "longest"), [(1, 4), (6, 6), (12, 11)])
def test_the_length_of_chains_is_a_setting(chain: int, longest: int) -> None:
    claims, sources = Claims(chain), dict[bytes, bytes]()
    for number in range(12):
        peer = b"%d" % number
        decision = claims.report(b"g", peer, Report(serves=True, working=True), number / 10)
        if decision.sources:
            sources[peer] = decision.sources[0]

    def depth(peer: bytes) -> int:
        return 1 + depth(sources[peer]) if peer in sources else 0

    assert max(map(depth, sources)) == longest
