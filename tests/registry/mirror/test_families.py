"""A peer that told two addresses: the second counts where the first is not reached, and nowhere else."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.http.peer_client import PeerClient, PeerResponse
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.providers.hedging import Ask, Exhausted, Race

from ..conftest import NOT_FOUND, head
from ..image import BLOB_PATH, DIGEST, LAYER, TAG_PATH, get

NOBODY = ("127.0.0.1", 1)
FIRST = Provider("peer", ("fd00::7", 5000), ("10.0.0.7", 5000))
SECOND = Provider("peer", ("10.0.0.7", 5000), ("fd00::7", 5000))


@pytest.fixture
def deaf() -> Iterator[tuple[str, int]]:
    """An address that drops whoever wants to connect: its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(2):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()


async def test_where_the_first_is_refused_the_second_is_asked(pair: Any) -> None:
    holder, asker = pair
    asker.router.knows(NOBODY, secondary=holder.address)
    response = await get(asker, BLOB_PATH)
    assert response.content == LAYER
    assert response.headers["x-spegel-served-by"] == f"127.0.0.1:{holder.address[1]}"
    # and it is what is remembered
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert len(asker.router.asked) == 1


async def test_where_the_first_does_not_answer_the_second_is_asked_and_for_a_while_alone(
    pair: Any, deaf: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, asker = pair
    asker.router.knows(deaf, secondary=holder.address)
    asked, request = [], PeerClient.request

    async def noted(self: PeerClient, address: tuple[str, int], *rest: Any, **options: Any) -> PeerResponse:
        asked.append(address)
        return await request(self, address, *rest, **options)

    monkeypatch.setattr(PeerClient, "request", noted)
    for path in (BLOB_PATH, TAG_PATH):
        assert (await get(asker, path)).status_code == 200
    assert asked == [deaf, holder.address, holder.address]


async def test_a_family_that_fails_for_all_costs_no_attempts(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    have_not = [await start_peer(NOT_FOUND) for _ in range(2)]
    asker.router.providers = [
        Provider(f"peer{i}", ("127.0.0.1", 1 + i), each.address) for i, each in enumerate([*have_not, holder])
    ]
    assert (await get(asker, BLOB_PATH)).content == LAYER


async def test_both_refuse(pair: Any) -> None:
    _, asker = pair
    asker.router.knows(NOBODY, secondary=("127.0.0.1", 2))
    assert (await get(asker, BLOB_PATH)).status_code == 404


@pytest.mark.parametrize(
    "script", [(NOT_FOUND,), (head(200, len(LAYER), f"Docker-Content-Digest: {DIGEST}"), b"x" * len(LAYER)), ()]
)
async def test_a_peer_that_is_reached_is_not_asked_twice(pair: Any, start_peer: Any, script: tuple[bytes, ...]) -> None:
    _, asker = pair
    first, second = await start_peer(*script), await start_peer(NOT_FOUND)
    asker.router.knows(first.address, secondary=second.address)
    assert (await get(asker, BLOB_PATH)).status_code == 404
    assert len(first.requests) == 1
    assert not second.requests


def test_a_turned_provider_is_asked_once_and_turns_no_further() -> None:
    core = Race(0.0, resolve_timeout=0.2, attempts=1, hedge=0.1)
    core.found(FIRST)
    core.found(SECOND)
    assert core.next(0.0) == Ask(FIRST)
    assert core.by_secondary(FIRST, SECOND)
    assert not core.by_secondary(SECOND, FIRST)
    core.failed(SECOND, 0.1)
    assert core.next(0.1) == Exhausted("1 peers were asked and none had it")


def no_sockets(monkeypatch: pytest.MonkeyPatch, code: int, *families: int) -> None:
    """Let the system refuse each new socket of these families to a dial."""
    make = trio.socket.socket

    def refusing(family: int, *rest: Any) -> trio.socket.SocketType:
        if family in families:
            raise OSError(code, os.strerror(code))
        return make(family, *rest)

    monkeypatch.setattr("spegel_consul.http.registry_connection.trio.socket.socket", refusing)


async def test_where_this_machine_has_no_ipv6_the_other_holder_is_asked(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, asker = pair
    asker.router.knows(("fd00::7", 5000), holder)
    no_sockets(monkeypatch, errno.EAFNOSUPPORT, socket.AF_INET6)
    assert (await get(asker, BLOB_PATH)).content == LAYER


async def test_no_socket_for_the_only_holder(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, asker = pair
    async with httpx.AsyncClient(base_url=asker.url, trust_env=False) as client:
        assert (await client.get("/v2/")).status_code == 200  # it is connected now
        no_sockets(monkeypatch, errno.EMFILE, socket.AF_INET)
        assert (await client.get(BLOB_PATH)).status_code == 404
