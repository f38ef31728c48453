"""A Consul in memory with an authority, and nodes that follow its certificates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from lab.connect_authority import ConnectAuthority

from spegel_consul.consul.authority import consul_tls
from spegel_consul.consul.authority.consul_tls import ConsulTls
from spegel_consul.http.peer_tls import Encryption
from tests.consul.fakeconsul import FakeConsul


@dataclass
class Authority:
    """``ca`` signs, and ``consul`` tells it to those that ``start`` has started."""

    consul: FakeConsul
    nursery: trio.Nursery
    ca: ConnectAuthority = field(default_factory=ConnectAuthority)

    def issue(self) -> None:
        """A new certificate, and the authorities as they are now."""
        self.consul.issue(leaf=self.ca.leaf(), roots=self.ca.roots())

    def make(self, data_dir: Path | None = None) -> ConsulTls:
        """A node that follows nothing yet; its clock passes with that of the event loop."""
        began = time.time()
        client = self.consul.client("n1")
        return ConsulTls(client, Encryption.REQUIRE, data_dir, clock=lambda: began + trio.current_time())

    async def start(self, data_dir: Path | None = None) -> ConsulTls:
        tls = self.make(data_dir)
        await self.nursery.start(tls.run)
        return tls


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that jumps would overtake a thread. Tests with files use no such clock."""

    async def inline(call: Callable[[], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        return call()

    monkeypatch.setattr(consul_tls, "in_thread", inline)


@pytest.fixture
async def silent(nursery: trio.Nursery) -> Authority:
    """One that has issued nothing, as if Connect were off."""
    return Authority(FakeConsul(nursery), nursery)


@pytest.fixture
async def authority(silent: Authority) -> Authority:
    """One that has issued a certificate."""
    silent.issue()
    return silent


async def until(condition: Callable[[], object], limit: float = 120) -> None:
    with trio.fail_after(limit):
        while not condition():
            await trio.sleep(0.05)
