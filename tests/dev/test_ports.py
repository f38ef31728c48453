"""Two demonstrations on one machine: the second one must not take the nodes of the first for its own."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from spegel_consul.dev.processes import DevError, make_nodes


@pytest.mark.parametrize(("address", "offset"), [("127.0.0.1", 0), ("127.0.0.2", 1), ("127.0.0.3", 2)])
def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path, address: str, offset: int) -> None:
    with socket.create_server((address, 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(DevError) as caught:
            make_nodes(3, tmp_path, port - offset)
        assert str(caught.value) == (
            f"{address}:{port}: Address already in use; --port names the first of 3 other ports"
        )
