"""Connections of this machine have a queue of their own, and one wake-up accepts many."""

from __future__ import annotations

import errno
import ipaddress
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from lab.no_files import no_files
from structlog.testing import capture_logs

from spegel_consul.http.server import accept
from spegel_consul.http.server.accept import OTHERS, OWN, ROUND, listen_for_own, own_connections
from spegel_consul.http.server.listen import ListenAddress, ListenError, listen

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def header(source: str, destination: str) -> bytes:
    """An IP header, as far as addresses are concerned."""
    src, dst = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    if src.version == 4:
        return b"\x45" + bytes(11) + src.packed + dst.packed
    return b"\x60" + bytes(7) + src.packed + dst.packed


def run(program: list[accept.Instruction], packet: bytes) -> int:
    """What the kernel's interpreter of classic BPF returns."""
    at = a = x = 0
    while True:
        code, true, false, k = program[at]
        at += 1
        if code == 0x06:
            return k
        if code in (0x20, 0x30):
            offset = k - 0xFFF00000
            a = int.from_bytes(packet[offset : offset + (4 if code == 0x20 else 1)], "big")
        elif code == 0x07:
            x = a
        elif code == 0x54:
            a &= k
        else:
            assert code in (0x15, 0x1D)
            at += true if a == (k if code == 0x15 else x) else false


@given(ADDRESSES, ADDRESSES)
def test_any_packet_is_told_from_one_of_this_machine(source: object, destination: object) -> None:
    src, dst = ipaddress.ip_address(str(source)), ipaddress.ip_address(str(destination))
    if src.version != dst.version:
        dst = src + 1 if int(src) < 1 << 31 else src - 1
    own = src == dst or (dst.version == 4 and dst in ipaddress.ip_network("127.0.0.0/8"))
    assert run(own_connections(), header(str(src), str(dst))) == (OWN if own else OTHERS)
    assert run(own_connections(), header(str(src), str(src))) == OWN


@pytest.mark.parametrize(
    ("source", "destination", "own"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("10.0.0.7", "127.0.0.1", True),
        ("10.0.0.7", "10.0.0.7", True),
        ("10.0.0.8", "10.0.0.7", False),
        ("10.0.0.9", "172.17.0.2", True),  # what a port mapping made of the node's own address
        ("10.0.0.10", "172.17.0.2", False),
        ("fd00::7", "fd00::7", True),
        ("fd00::8", "fd00::7", False),
        ("fd01::7", "fd00::7", False),
        ("::1", "::1", True),
    ],
)
def test_addresses_that_are_this_machines(source: str, destination: str, own: bool) -> None:
    program = own_connections(["10.0.0.9", "fd00::9", "10.0.0.11"])
    assert run(program, header(source, destination)) == (OWN if own else OTHERS)


@pytest.fixture(params=[":0", "127.0.0.1:0", "[::1]:0"])
def both(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    sock = listen(ListenAddress.parse(request.param), "--x")
    own = listen_for_own(sock)
    assert own is not None
    with sock, own:
        yield sock, own


def clients_of(sock: socket.socket, count: int = 1) -> list[socket.socket]:
    host, port = sock.getsockname()[:2]
    targets = ["127.0.0.1", "::1"] if host == "::" else [host]
    return [socket.create_connection((target, port), 5) for target in targets for _ in range(count)]


def test_loopback_connections_wait_apart(both: tuple[socket.socket, socket.socket]) -> None:
    sock, own = both
    clients = clients_of(sock, 10)
    for client in clients:
        own.accept()[0].close()
        client.close()
    for each in both:
        with pytest.raises(BlockingIOError):
            each.accept()


def test_the_port_is_still_this_processs_alone(both: tuple[socket.socket, socket.socket]) -> None:
    host, port = both[0].getsockname()[:2]
    with pytest.raises(ListenError, match="address already in use"):
        listen(ListenAddress("" if host == "::" else host, port), "--registry-addr")


def test_without_programs_there_is_one_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "_SO_ATTACH_REUSEPORT_CBPF", 9999)  # no kernel knows this option
    with listen(ListenAddress("127.0.0.1", 0), "--x") as sock:
        assert listen_for_own(sock) is None
        client = clients_of(sock)[0]
        sock.accept()[0].close()
        client.close()


async def test_one_wake_up_accepts_many(autojump_clock: trio.testing.MockClock) -> None:
    """Looks at how often the loop turned, not at how long it took."""
    sock = listen(ListenAddress("127.0.0.1", 0), "--x")
    clients = clients_of(sock, 3 * ROUND)
    accepted: list[socket.socket] = []
    rounds = 0

    class Passes(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            nonlocal rounds
            rounds += 1

    trio.lowlevel.add_instrument(passes := Passes())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept.accept, sock, accepted.append)
        while len(accepted) < len(clients):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(passes)
    assert rounds <= 8
    for each in [*accepted, *clients]:
        each.close()
    assert sock.fileno() == -1


@pytest.mark.parametrize(("lacks", "waited"), [(errno.EMFILE, 0.3), (errno.ENOMEM, 0.5)])
async def test_a_process_that_lacks_something_waits_and_goes_on(
    autojump_clock: trio.testing.MockClock, lacks: int, waited: float
) -> None:
    class Short:
        """A listening socket of a process without files or memory."""

        def __init__(self) -> None:
            self.sock = listen(ListenAddress("127.0.0.1", 0), "--x")
            self.tries = 0

        def fileno(self) -> int:
            return self.sock.fileno()

        def accept(self) -> tuple[socket.socket, object]:
            self.tries += 1
            if self.tries <= 5:
                raise OSError(lacks, os.strerror(lacks))
            if self.tries <= 10:
                raise OSError(errno.ECONNABORTED, "Software caused connection abort")
            return self.sock.accept()

        def close(self) -> None:
            self.sock.close()

    short, accepted = Short(), []
    client = clients_of(short.sock)[0]
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept.accept, short, accepted.append)
        while not accepted:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began >= waited, "it does not spin"
    accepted[0].close()
    client.close()


async def hears_of_the_end(client: socket.socket, within: float = 1) -> bool:
    """Whether the server closes the connection in time."""
    client.setblocking(False)
    with trio.move_on_after(within):
        await trio.lowlevel.wait_readable(client)
        with suppress(ConnectionResetError):
            return client.recv(1) == b""
        return True
    return False


async def test_without_files_connections_are_closed_instead_of_waiting(nursery: trio.Nursery) -> None:
    sock, accepted = listen(ListenAddress("127.0.0.1", 0), "--x"), list[socket.socket]()
    clients = [socket.socket() for _ in range(2 * ROUND + 3)]
    nursery.start_soon(accept.accept, sock, accepted.append)
    await trio.testing.wait_all_tasks_blocked()
    with capture_logs() as said, no_files():
        for client in clients[:-1]:
            client.connect(sock.getsockname())
        for client in clients[:-1]:
            assert await hears_of_the_end(client)
    assert not accepted
    assert [line["event"] for line in said] == ["no connection can be accepted now"]
    clients[-1].connect(sock.getsockname())
    while not accepted:
        await trio.sleep(0.01)
    with socket.socket() as client, no_files():
        client.connect(sock.getsockname())
        assert await hears_of_the_end(client), "the reserve is there again"
    for each in [*accepted, *clients]:
        each.close()


async def test_a_brief_lack_of_files_costs_no_connection(nursery: trio.Nursery) -> None:
    sock, accepted = listen(ListenAddress("127.0.0.1", 0), "--x"), list[socket.socket]()
    nursery.start_soon(accept.accept, sock, accepted.append)
    await trio.testing.wait_all_tasks_blocked()
    with socket.socket() as client:
        with no_files():
            client.connect(sock.getsockname())
            await trio.sleep(0.01)
        while not accepted:
            await trio.sleep(0.01)
    accepted[0].close()


async def test_clients_are_closed_though_a_file_comes_free_now_and_then(nursery: trio.Nursery) -> None:
    sock, accepted = listen(ListenAddress("127.0.0.1", 0), "--x"), list[socket.socket]()
    clients = [socket.socket() for _ in range(2 * ROUND)]
    nursery.start_soon(accept.accept, sock, accepted.append)
    await trio.testing.wait_all_tasks_blocked()

    async def allow_more() -> None:
        while True:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft + 1, hard))
            await trio.sleep(0.04)

    with no_files():
        for client in clients:
            client.connect(sock.getsockname())
        async with trio.open_nursery() as beside:
            beside.start_soon(allow_more)
            assert await hears_of_the_end(clients[-1], within=10)
            beside.cancel_scope.cancel()
    assert len(accepted) < len(clients)
    for each in [*accepted, *clients]:
        each.close()
