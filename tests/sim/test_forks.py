from __future__ import annotations

import os
import signal
import time

import pytest

from tests.sim.forks import Forks


def test_each_seed_has_the_start_of_its_group_and_a_process_of_its_own() -> None:
    groups = [[3, 4, 5], [6, 7], [9]]

    def start(number: int, forks: Forks) -> None:
        began = os.getpid()
        seed = forks.branch()
        time.sleep(0.05 * (seed % 3 == 0))  # those that end first are not told first
        forks.end((seed, number, began, os.getpid()))

    results = list(Forks(groups, 2, start).run())
    assert [seed for seed, *_ in results] == [3, 4, 5, 6, 7, 9]
    assert [number for _, number, *_ in results] == [0, 0, 0, 1, 1, 2]
    assert len({began for *_, began, _ in results}) == 3
    assert len({own for *_, own in results}) == 6
    assert os.getpid() not in {own for *_, own in results}


@pytest.mark.parametrize("where", ["start", "killed start", "seed", "killed seed"])
def test_one_that_breaks_is_named_and_the_others_are_stopped(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    def start(number: int, forks: Forks) -> None:
        if number == 1 and where == "start":
            raise ValueError("no start")
        if number == 1 and where == "killed start":
            os.kill(os.getpid(), signal.SIGKILL)
        seed = forks.branch()
        if seed == 5:
            if where == "killed seed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("no end")
        if seed == 8:
            time.sleep(60)
        forks.end(seed)

    began = time.monotonic()
    with pytest.raises(RuntimeError, match="seed 5 broke"):
        list(Forks([[1], [5, 6], [8]], 2, start).run())
    assert time.monotonic() - began < 30
    if not where.startswith("killed"):
        assert "ValueError" in capfd.readouterr().err
