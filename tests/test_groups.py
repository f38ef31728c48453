"""The tests of one file run in one process, because they share what takes long to start.

A rule about how the suite is divided among processes belongs here.
"""

from __future__ import annotations

import os

import pytest


def test_a_file_is_a_group(request: pytest.FixtureRequest) -> None:
    among_processes = "PYTEST_XDIST_WORKER" in os.environ and request.config.getoption("loadgroup", False)
    assert request.node.nodeid.endswith("@tests/test_groups.py") == among_processes
