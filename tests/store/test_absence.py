"""A containerd that is away is said once, and again when it is away again."""

from __future__ import annotations

import pytest
import structlog

from spegel_consul.store.containerd.absence import Absence


def test_the_namespaces_of_one_containerd_are_one_line_in_the_log() -> None:
    absence = Absence()
    with structlog.testing.capture_logs() as said:
        for _ in range(3):
            for namespace in ("default", "moby", "k8s.io"):
                absence.began(namespace, "no socket")
    assert [line["reason"] for line in said] == ["no socket"]


@pytest.mark.parametrize("back", [True, False])
def test_another_absence_is_another_line(back: bool) -> None:
    absence = Absence()
    absence.began("moby", "no socket")
    assert absence.ended("moby")
    assert not absence.ended("moby")
    with structlog.testing.capture_logs() as said:
        absence.began("moby", "no socket" if back else "refused")
        absence.began("moby", "hangs")
    assert len(said) == 1, "a reason that changes meanwhile is no news"
