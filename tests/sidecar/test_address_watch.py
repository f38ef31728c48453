"""An address that this node advertises leaves the machine, and comes back or is replaced."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from lab.process import HANG
from structlog.testing import capture_logs
from trio.testing import MockClock

from spegel_consul.preflight import node_address
from spegel_consul.preflight.node_address import LocalAddress, NodeAddress, advertised, one_or_two
from spegel_consul.sidecar import address_watch
from spegel_consul.sidecar.address_watch import EVERY, AddressWatch
from tests.sidecar.processes import with_an_empty_layout


class Machine:
    """A machine with one interface, ``eth0``."""

    def __init__(self) -> None:
        self.has("10.0.0.7", "fd00::7")

    def has(self, *ips: str, bridge: str | None = None) -> None:
        self._addresses = tuple(LocalAddress("eth0", ipaddress.ip_address(ip)) for ip in ips)
        if bridge is not None:
            self._addresses += (LocalAddress("cni0", ipaddress.ip_address(bridge)),)

    def local_addresses(self) -> tuple[LocalAddress, ...]:
        return self._addresses


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(node_address, "local_addresses", made.local_addresses)
    monkeypatch.setattr(node_address, "_default_route_sources", lambda: [str(made.local_addresses()[0].ip)])

    async def at_once(call: Callable[[], object]) -> object:  # virtual time does not wait for threads
        await trio.lowlevel.checkpoint()
        return call()

    monkeypatch.setattr(address_watch, "in_thread", at_once)
    return made


@contextmanager
def logged() -> Iterator[list[str]]:
    levels: list[str] = []
    with capture_logs() as logs:
        yield levels
    levels += [entry["log_level"] for entry in logs]


async def test_a_given_address_is_lost_and_comes_back(
    machine: Machine, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    watch = AddressWatch(one_or_two("10.0.0.7,fd00::7"))
    with logged() as levels:
        await nursery.start(watch.run)
        await trio.sleep(3 * EVERY)
        assert watch.problem is None
        machine.has("10.0.0.8", "fd00::7")
        await trio.sleep(3 * EVERY)
        assert watch.problem == "this machine has lost 10.0.0.7, which this node advertises"
        machine.has("10.0.0.7", "fd00::7")
        await trio.sleep(3 * EVERY)
        assert watch.problem is None
        machine.has("10.0.0.7")
        await trio.sleep(3 * EVERY)
        assert "fd00::7" in (watch.problem or "")
    assert levels == ["error", "info", "error"]
    assert not watch.superseded.is_set()


CHOICES: list[Callable[[], tuple[NodeAddress, ...]]] = [
    lambda: one_or_two("eth0"),
    lambda: one_or_two("10.0.0.0/8"),
    lambda: one_or_two("{{ GetPrivateIP }}"),
    lambda: (advertised((), ""),),
]


@pytest.mark.parametrize("choose", CHOICES, ids=["interface", "network", "template", "default route"])
async def test_a_chosen_address_is_replaced(
    choose: Callable[[], tuple[NodeAddress, ...]], machine: Machine, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    watch = AddressWatch(choose())
    with logged() as levels:
        await nursery.start(watch.run)
        machine.has("10.0.0.8", "fd00::7")
        await trio.sleep(1.5 * EVERY)
        assert not watch.superseded.is_set()
        await trio.sleep(1.5 * EVERY)
    assert watch.superseded.is_set()
    assert "10.0.0.7" in (watch.problem or "")
    assert set(levels) == {"error"}


async def test_another_start_is_asked_for_only_when_it_has_an_address(
    machine: Machine, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    watch = AddressWatch(one_or_two("10.0.0.0/8"))
    await nursery.start(watch.run)
    machine.has("192.168.0.7")
    await trio.sleep(10 * EVERY)
    assert "10.0.0.7" in (watch.problem or "")
    assert not watch.superseded.is_set()
    machine.has("192.168.0.7", "10.0.0.9")
    await trio.sleep(1.5 * EVERY)
    assert watch.superseded.is_set()


@pytest.mark.parametrize(
    ("choice", "left", "bridge"),
    [
        (CHOICES[0], ["fd00::7"], None),
        (CHOICES[0], ["fd00::7", "fd00::8"], None),
        (CHOICES[3], ["fd00::7"], None),
        (CHOICES[0], ["10.0.0.200", "fd00::7"], None),
        (CHOICES[1], ["fd00::7"], "10.42.3.1"),
        (CHOICES[1], ["fd00::7"], "10.43.3.1"),
    ],
    ids=["other family", "new of another family", "default route", "was there before", "bridge", "new bridge"],
)
async def test_what_else_the_setting_fits_is_no_replacement(
    choice: Callable[[], tuple[NodeAddress, ...]],
    left: list[str],
    bridge: str | None,
    machine: Machine,
    nursery: trio.Nursery,
    autojump_clock: MockClock,
) -> None:
    machine.has("10.0.0.7", "10.0.0.200", "fd00::7", bridge="10.42.3.1")
    watch = AddressWatch(choice())
    await nursery.start(watch.run)
    machine.has(*left, bridge=bridge)
    await trio.sleep(6 * EVERY)
    assert "10.0.0.7" in (watch.problem or "")
    assert not watch.superseded.is_set()
    machine.has("10.0.0.7", "10.0.0.200", "fd00::7", bridge="10.42.3.1")
    await trio.sleep(1.5 * EVERY)
    assert watch.problem is None


async def test_a_moment_without_it_is_no_loss(
    machine: Machine, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    watch = AddressWatch(one_or_two("eth0"))
    await nursery.start(watch.run)
    for _ in range(5):
        machine.has("10.0.0.8")
        await trio.sleep(EVERY)
        machine.has("10.0.0.7")
        await trio.sleep(EVERY)
    assert watch.problem is None
    assert not watch.superseded.is_set()


async def test_an_address_of_another_machine_is_never_judged(
    machine: Machine, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    watch = AddressWatch(one_or_two("192.0.2.1,fd00::7"))
    await nursery.start(watch.run)
    machine.has("192.0.2.1", "fd00::7")
    await trio.sleep(3 * EVERY)
    machine.has("10.0.0.7", "fd00::7")
    await trio.sleep(3 * EVERY)
    assert watch.problem is None


async def test_addresses_that_cannot_be_read_prove_nothing(
    machine: Machine, nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> tuple[LocalAddress, ...]:
        raise OSError("no memory")

    watch = AddressWatch(one_or_two("10.0.0.7"))
    await nursery.start(watch.run)
    monkeypatch.setattr(node_address, "local_addresses", fails)
    await trio.sleep(5 * EVERY)
    assert watch.problem is None


MOVES = """
import ipaddress
from spegel_consul import cli
from spegel_consul.preflight import node_address
from spegel_consul.preflight.node_address import LocalAddress
from spegel_consul.sidecar import address_watch

looks = 0
def local_addresses():
    global looks
    looks += 1
    return (LocalAddress("eth7", ipaddress.ip_address("127.0.0.1" if looks < 5 else "127.0.0.2")),)

node_address.local_addresses = local_addresses
address_watch.EVERY = 0.5
cli.main()
"""


@pytest.mark.parametrize("silence", ["10s", "0"])
def test_the_sidecar_ends_in_order_with_status_1(tmp_path: Path, silence: str) -> None:
    argv = [*with_an_empty_layout(tmp_path, silence)[3:], "--advertise-addr=eth7"]
    program = [sys.executable, "-c", MOVES, *argv]
    done = subprocess.run(program, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count('"level": "error"') == 1, done.stderr
    assert "127.0.0.1" in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].find('"stopped"') > 0, done.stderr
