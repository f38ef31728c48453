from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.consul.realconsul import ConsulAgent


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """A real agent, shared by the tests of a file; each uses names of its own."""
    with ConsulAgent(tmp_path_factory.mktemp("consul")) as running:
        yield running
