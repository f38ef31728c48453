from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.backoff import Backoff, BlockingIndex


@given(st.integers(), st.integers(1, 200))
def test_backoff_grows_to_its_cap_and_is_never_zero(seed: int, failures: int) -> None:
    backoff = Backoff(0.25, 10, random.Random(seed))
    delays = [backoff.next() for _ in range(failures)]
    assert all(0.125 <= delay <= min(10, 0.25 * 2 ** (n + 1)) for n, delay in enumerate(delays))
    backoff.reset()
    assert backoff.next() <= 0.5


def test_index_rules() -> None:
    index = BlockingIndex()
    assert index.value == 0  # the first query doesn't wait
    index.advance(7)
    assert index.value == 7
    index.advance(7)
    assert index.value == 7
    index.advance(10)
    assert index.value == 10  # as a number: "9" > "10"
    index.advance(9)
    assert index.value == 0  # backwards: from the beginning
    index.advance(0)
    assert index.value == 1  # a missing index must block next time
    index.advance(10)
    for _ in range(3):
        index.advance(0)
        assert index.value == 10  # and the times after that
    index.reset()
    assert index.value == 0
