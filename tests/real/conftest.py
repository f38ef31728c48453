"""Fixtures of the tests with real parts: clusters, images, and logs in the report of a failed test."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from lab import parts
from lab import run_dir as run_dirs
from lab.cluster import Cluster, MakeCluster
from lab.image import MIB, Image, MakeImage, build
from lab.process import tail
from lab.run_dir import RunDir


@pytest.fixture(scope="session", autouse=True)
def real_parts() -> None:
    """Nothing is skipped: what is missing fails every test with the way to get it."""
    parts.check()


@pytest.fixture
def cluster() -> Iterator[MakeCluster]:
    """``cluster(nodes=3, consul=True, containerd="21")`` starts one, see Cluster; it goes away with the test."""
    with ExitStack() as stack:

        def make(*args: Any, **kwargs: Any) -> Cluster:
            return stack.enter_context(Cluster(*args, **kwargs))

        yield make


@pytest.fixture
def daemons() -> Iterator[ExitStack]:
    """Ends the daemons that a test has started beside those of its cluster."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def image() -> Iterator[MakeImage]:
    """``image("docker.io/library/app:v1", layers=[…], seed=1)``: built once for the same arguments."""
    built: dict[tuple[str, tuple[int, ...], int], Image] = {}
    with RunDir() as run_dir:

        def make(name: str = "docker.io/library/app:v1", layers: Sequence[int] = (MIB,), seed: int = 1) -> Image:
            key = (name, tuple(layers), seed)
            if key not in built:
                directory = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
                built[key] = build(run_dir.path / directory, name, layers, seed)
            return built[key]

        yield make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and item.get_closest_marker("real") is not None:
        for log in run_dirs.logs():
            report.sections.append((f"{log.parent.parent.name}/{log.name}", tail(log, lines=40)))
    return report
