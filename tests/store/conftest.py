# Real containerds, one process of each version for the whole run; each test gets a namespace of its own in it.

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance.store import SampleImage
from store.daemon import SCRATCH, VERSIONS, Containerd, Upstream


@pytest.fixture(scope="session", params=list(VERSIONS))
def containerd(request: pytest.FixtureRequest) -> Iterator[Containerd]:
    with tempfile.TemporaryDirectory(prefix="spegel-", dir=SCRATCH) as home:
        daemon = Containerd(request.param, Path(home))
        daemon.start()
        try:
            yield daemon
        finally:
            daemon.stop()


@pytest.fixture
def own_containerd(containerd: Containerd) -> Iterator[Containerd]:
    """Another one of the same version, for tests that stop it."""
    home = Path(tempfile.mkdtemp(prefix="spegel-", dir=SCRATCH))
    daemon = Containerd(containerd.version, home)
    try:
        yield daemon
    finally:
        daemon.stop()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def upstream() -> Iterator[type[Upstream]]:
    """Registries that end with the test: call it with an image."""
    started: list[Upstream] = []

    class Started(Upstream):
        def __init__(self, image: SampleImage) -> None:
            super().__init__(image)
            started.append(self)
            threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    yield Started
    for server in started:
        server.gate.set()
        server.shutdown()
        server.server_close()
