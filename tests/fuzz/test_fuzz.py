"""Each input of the corpus, and some thousands that nobody has seen before. More: `python -m fuzz --minutes 30`."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.mutate import generated
from fuzz.seeds import CORPUS, files, seeds
from fuzz.targets import TARGETS

_FEW = {"both_paths": 15, "consul_answer": 60, "kv_value": 40, "nomad_answer": 60, "state_files": 80}


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus(target: str) -> None:
    assert files(target), f"nothing to start from in {CORPUS / target}"
    read = [TARGETS[target](file.read_bytes()) for file in files(target)]
    assert any(read), "all of it is refused, so nothing is tried beyond the first reading"


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_that_nobody_has_seen(target: str) -> None:
    @settings(max_examples=_FEW.get(target, 250), suppress_health_check=list(HealthCheck), database=None)
    @given(st.integers(0, 1 << 62))
    def one(number: int) -> None:
        used = time.process_time()
        TARGETS[target](generated(random.Random(number), seeds(target)))
        assert time.process_time() - used < 2.0, "an input that costs so much holds everybody"

    one()


def test_the_corpus_is_of_targets_that_there_are() -> None:
    assert {path.name for path in Path(CORPUS).iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < 512 << 10
