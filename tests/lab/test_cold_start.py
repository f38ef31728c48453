"""Pulls that run in threads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.cold_start import Pulls


@pytest.mark.parametrize("problem", [OSError("no client"), None])
def test_a_pull_that_could_not_be_tried_has_failed(problem: Exception | None) -> None:
    def pull(name: str, timeout: float) -> None:
        if problem is not None:
            raise problem

    nodes: list[Any] = [
        SimpleNamespace(name=f"n{number}", has_docker=True, docker=SimpleNamespace(pull=pull, content_path=Path()))
        for number in range(2)
    ]
    image: Any = SimpleNamespace(name="app:v1", digests=())
    upstream = SimpleNamespace(forget=lambda: None, requests=lambda: [], blob_requests=lambda: [])
    cold: Any = SimpleNamespace(upstream=upstream, lab=[SimpleNamespace(port=SimpleNamespace(sent_bytes=lambda: 0))])
    outcome = Pulls(cold, (image,), nodes, 0.0, 1, 5.0).outcome()
    assert [pull.node for pull in outcome.pulls] == ["n0", "n1"]
    assert len(outcome.failures) == (0 if problem is None else 2)
