"""Two demonstrations on one machine: the second one must not take the nodes of the first for its own."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from spegel_consul.dev.processes import DevError, make_nodes


def free_port(tmp_path: Path) -> int:
    """The first of three ports that are free on three nodes, below those that the kernel gives away."""
    for attempt in range(50):
        port = random.randrange(12_000, 30_000)
        try:
            make_nodes(3, tmp_path / str(attempt), port)
        except DevError:
            continue
        return port
    raise AssertionError("no free ports")


@pytest.mark.parametrize(("address", "offset"), [("127.0.0.1", 0), ("127.0.0.2", 1), ("127.0.0.3", 2)])
def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path, address: str, offset: int) -> None:
    port = free_port(tmp_path)
    with socket.create_server((address, port + offset)), pytest.raises(DevError) as caught:
        make_nodes(3, tmp_path / "second", port)
    assert str(caught.value) == (
        f"{address}:{port + offset}: Address already in use; --port names the first of 3 other ports"
    )
