"""The TLS context of a client follows its files: the next connection uses new ones, and wrong ones are never used."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import rsa
from lab.certificates import Authority
from structlog.testing import capture_logs

from spegel_consul.disk import foreign_files
from spegel_consul.http.client_tls import ClientTls
from spegel_consul.http.followed_context import FollowedContext


class Place:
    """Certificates on disk, and what a server and the followed client make of each other."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.authority = Authority.make(home)
        self.of_clients = self.authority.path.read_text()
        self.cert, self.key = self.authority.issue(home, "client", "127.0.0.1")
        self.now = 0.0
        self.followed = FollowedContext(
            ClientTls("CONSUL", str(self.authority.path), client_cert=str(self.cert), client_key=str(self.key))
        )

    async def look(self, after: float = 2.0) -> None:
        self.now += after
        await self.followed.look(self.now)

    async def shown(self, authority: Authority | None = None) -> bytes | None:
        """The certificate that a new connection shows to a server of ``authority``; None if it does not trust it."""
        issuer = authority or self.authority
        directory = self.home / "server"
        directory.mkdir(exist_ok=True)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=self.of_clients)
        context.load_cert_chain(*issuer.issue(directory, "server", "127.0.0.1"))
        context.verify_mode = ssl.CERT_REQUIRED
        ours, theirs = trio.testing.memory_stream_pair()
        client = trio.SSLStream(ours, self.followed.context, server_hostname="127.0.0.1")
        server = trio.SSLStream(theirs, context, server_side=True)
        found: list[bytes | None] = []

        async def dial() -> None:
            try:
                await client.do_handshake()
            except trio.BrokenResourceError:
                await ours.aclose()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial)
                with suppress(trio.BrokenResourceError):
                    await server.do_handshake()
                    found.append(server.getpeercert(binary_form=True))
        return found[0] if found else None


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def first_of(path: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text().split("-----END")[0] + "-----END CERTIFICATE-----\n")


async def test_a_renewed_certificate_is_shown_by_new_connections(place: Place) -> None:
    before = await place.shown()
    assert before == first_of(place.cert)
    context = place.followed.context
    place.authority.issue(place.home, "client", "127.0.0.1")
    await place.look()
    assert await place.shown() == first_of(place.cert) != before
    assert place.followed.context is context  # which the pool of connections holds


async def test_a_certificate_with_another_type_of_key_replaces_the_old_one(place: Place) -> None:
    """A context of OpenSSL keeps one certificate for each type of key, and would go on with the one of the EC key."""
    before = await place.shown()
    place.authority.issue(place.home, "client", "127.0.0.1", key=rsa.generate_private_key(65537, 2048))
    await place.look()
    assert await place.shown() == first_of(place.cert) != before


async def test_it_is_looked_at_once_a_second_at_most(place: Place) -> None:
    await place.look()
    before = await place.shown()
    place.authority.issue(place.home, "client", "127.0.0.1")
    await place.look(after=0.5)
    assert await place.shown() == before
    await place.look(after=0.6)
    assert await place.shown() != before


def half_written(place: Place) -> None:
    place.key.write_text(place.key.read_text()[:40])


def other_key(place: Place) -> None:
    _, key = place.authority.issue(place.home, "another", "127.0.0.1")
    key.replace(place.key)


def fifo(place: Place) -> None:
    place.key.unlink()
    os.mkfifo(place.key)


def gone(place: Place) -> None:
    place.cert.unlink()


def no_authority(place: Place) -> None:
    place.authority.path.write_text("not PEM")


@pytest.mark.parametrize("spoil", [half_written, other_key, fifo, gone, no_authority])
async def test_files_that_are_wrong_leave_the_old_ones_in_use(place: Place, spoil: Callable[[Place], None]) -> None:
    before = await place.shown()
    spoil(place)
    with capture_logs() as said:
        for _ in range(3):
            with trio.fail_after(30):
                await place.look()
    assert await place.shown() == before
    assert [event["event"] for event in said] == ["new TLS files are not used"]  # once, and not with each look
    assert str(place.home) in said[0]["error"]


async def test_authorities_are_those_of_the_file(place: Place, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    new = Authority.make(tmp_path / "new")
    assert await place.shown(new) is None
    place.authority.path.write_text(place.authority.path.read_text() + new.path.read_text())
    await place.look()
    assert await place.shown(new) is not None
    assert await place.shown() is not None
    place.authority.path.write_bytes(new.path.read_bytes())
    await place.look()
    assert await place.shown(new) is not None
    assert await place.shown() is None


async def test_a_disk_that_hangs_holds_up_one_request_for_a_moment(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request that comes upon it waits its time, the next ones not at all."""
    place.followed._files._calls = foreign_files.FileCalls(0.05)
    hanging, looked = threading.Event(), []

    def hangs() -> None:
        looked.append(1)
        hanging.wait(60)

    monkeypatch.setattr(place.followed._files, "_stamp", hangs)
    try:
        with capture_logs() as said:
            for _ in range(3):
                with trio.fail_after(30):
                    await place.look()
    finally:
        hanging.set()
    assert len(looked) == 1
    assert [event["event"] for event in said] == ["new TLS files are not used"]
    assert said[0]["error"].startswith("no answer within 0.05 s")
    assert await place.shown() == first_of(place.cert)
