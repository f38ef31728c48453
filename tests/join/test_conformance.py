"""The bootstraps, by one suite: files, HTTP and DNS are real, and a fake plays Nomad's API.

Those of Consul are in ``test_consul_conformance``.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conformance.bootstrap import BootstrapSuite, NamingSuite, SeveralPeersSuite, router
from lab.ports import free_port
from lab.process import HANG, ending, until

from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.join import Bootstrap
from spegel_consul.join.fallback import SeveralBootstraps
from spegel_consul.join.polled import PolledBootstrap, Source
from spegel_consul.join.sources import dns
from spegel_consul.join.sources.dns import DnsSource
from spegel_consul.join.sources.http_document import HttpSource
from spegel_consul.join.sources.nomad_lock import RULES, NomadVarBootstrap
from spegel_consul.join.sources.nomad_service import NomadServiceSource
from spegel_consul.join.sources.peer_file import FileSource
from spegel_consul.join.sources.static import StaticBootstrap
from spegel_consul.peers import PeerInfo
from tests.join.fakenomad import FakeNomad

ME = PeerInfo("me", ("/ip4/10.9.9.9/tcp/5001",))
RECORD = LeaderRecord("me", ("/ip4/10.9.9.9/tcp/5001/p2p/me",), node="me")
Peer = tuple[str, int]


def polled(source: Source) -> Bootstrap:
    return PolledBootstrap(source, every=0.1, within=1)


# -- a list


class StaticPlace:
    def __init__(self) -> None:
        self._peers: tuple[Peer, ...] = ()

    async def bootstrap(self) -> Bootstrap:
        return StaticBootstrap(f"{host}:{port}" for host, port in self._peers)

    async def name(self, *peers: Peer) -> None:
        self._peers = peers


class TestStatic(NamingSuite, SeveralPeersSuite):
    @pytest.fixture
    def place(self) -> StaticPlace:
        return StaticPlace()


# -- a file


class FilePlace:
    """Written as Nomad writes a template: aside, then renamed; failing is a file written in place, half."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole = True
        self._text = ""

    async def bootstrap(self) -> Bootstrap:
        return polled(FileSource(self._path))

    async def name(self, *peers: Peer) -> None:
        self._text = json.dumps([{"ID": "", "Addrs": [router(peer)]} for peer in peers], indent=1)
        self._write()

    async def fail(self) -> None:
        self._whole = False
        self._write()

    async def recover(self) -> None:
        self._whole = True
        self._write()

    def _write(self) -> None:
        aside = self._path.with_suffix(".new")
        aside.write_text(self._text if self._whole else self._text[: len(self._text) // 2])
        aside.rename(self._path)


class TestFile(BootstrapSuite, SeveralPeersSuite):
    @pytest.fixture
    def place(self, tmp_path: Path) -> FilePlace:
        return FilePlace(tmp_path / "peers")


# -- HTTP


class HttpPlace:
    """A web server that answers with ``status`` and ``body``."""

    def __init__(self) -> None:
        place = self
        self.status, self.body, self._bodies = 200, b"", (b"", b"<html>Bad Gateway</html>")

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(place.status)
                self.send_header("Content-Length", str(len(place.body)))
                self.end_headers()
                self.wfile.write(place.body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # whoever hangs up early
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/id"

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    async def bootstrap(self) -> Bootstrap:
        return polled(HttpSource(self.url))

    async def name(self, *peers: Peer) -> None:
        peers_json = [{"ID": "", "Addrs": [router(peer)]} for peer in peers]
        self._bodies = (json.dumps(peers_json).encode(), self._bodies[1])
        if self.status == 200:
            self.body = self._bodies[0]

    async def fail(self) -> None:
        self.status, self.body = 502, self._bodies[1]

    async def recover(self) -> None:
        self.status, self.body = 200, self._bodies[0]


@pytest.fixture
def web() -> Iterator[HttpPlace]:
    place = HttpPlace()
    yield place
    place.close()


class TestHttp(BootstrapSuite, SeveralPeersSuite):
    @pytest.fixture
    def place(self, web: HttpPlace) -> HttpPlace:
        return web


# -- DNS, by a real dnsmasq


class Dnsmasq:
    """Answers for ``spegel.test`` from a hosts file, over UDP and TCP."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._hosts = directory / "hosts"
        self._hosts.write_text("")
        self._arguments = arguments
        self._log = directory / "dnsmasq.log"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        argv = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", f"--port={self.port}", "--bind-interfaces"]
        argv += ["--listen-address=127.0.0.1", "--no-resolv", "--no-hosts", f"--addn-hosts={self._hosts}"]
        argv += ["--local=/test/", "--pid-file=", "--user=root", "--no-poll", "--log-facility=-", *self._arguments]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        until(self._listens, timeout=HANG, what="dnsmasq listens")

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), HANG).close()
        except OSError:
            return False
        return True

    def serve(self, *addresses: str) -> None:
        self._hosts.write_text("".join(f"{address} spegel.test\n" for address in addresses))
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        if self._process is not None:
            with ending(self._process) as process:
                process.terminate()
                process.wait(HANG)
            self._process = None


class DnsPlace:
    def __init__(self, server: Dnsmasq) -> None:
        self._server = server

    async def bootstrap(self) -> Bootstrap:
        return polled(DnsSource("spegel.test", 5001, ("127.0.0.1", self._server.port)))

    async def name(self, *peers: Peer) -> None:
        self._server.serve(*(host for host, _ in peers))

    async def fail(self) -> None:
        self._server.stop()

    async def recover(self) -> None:
        self._server.start()


@pytest.fixture
def dnsmasq(tmp_path: Path) -> Iterator[Dnsmasq]:
    srv = [f"--srv-host=_router._tcp.spegel.test,host{n}.spegel.test,{6000 + n}" for n in range(1, 6)]
    hosts = [f"--host-record=host{n}.spegel.test,10.1.0.{n}" for n in range(1, 6)]
    server = Dnsmasq(tmp_path, *srv, *hosts)
    yield server
    server.stop()


@pytest.mark.real
class TestDns(BootstrapSuite, SeveralPeersSuite):
    @pytest.fixture
    def place(self, dnsmasq: Dnsmasq, monkeypatch: pytest.MonkeyPatch) -> DnsPlace:
        monkeypatch.setattr(dns, "_QUESTION_WITHIN", 0.4)
        return DnsPlace(dnsmasq)


# -- Nomad


class NomadServicePlace:
    def __init__(self, nomad: FakeNomad, fault: int | str) -> None:
        self._nomad = nomad
        self._fault = fault

    async def bootstrap(self) -> Bootstrap:
        return polled(NomadServiceSource(self._nomad.client(), "spegel-router", ME, "alloc"))

    async def name(self, *peers: Peer) -> None:
        self._nomad.services["spegel-router"] = [
            {"ID": host, "AllocID": f"alloc-{host}", "Address": host, "Port": port} for host, port in peers
        ]

    async def fail(self) -> None:
        self._nomad.links["n"] = self._fault

    async def recover(self) -> None:
        self._nomad.links.clear()


class NomadVarPlace(NomadServicePlace):
    """A variable that this node may read and not lock."""

    async def bootstrap(self) -> Bootstrap:
        return NomadVarBootstrap(
            self._nomad.client(),
            "nomad/jobs/spegel/leader",
            RECORD,
            rules=replace(RULES, try_held=10_000),
            rng=random.Random(1),
        )

    async def name(self, *peers: Peer) -> None:
        for peer in peers:
            self._nomad.write("nomad/jobs/spegel/leader", {"peer_id": f"peer{peer[0]}", "addrs": router(peer)})

    async def fail(self) -> None:
        await super().fail()
        for path, variable in list(self._nomad.variables.items()):  # so that a read that has begun ends
            self._nomad.write(path, variable["Items"])


class TestNomadService(BootstrapSuite, SeveralPeersSuite):
    @pytest.fixture(params=["hang", "html"])
    def place(self, request: pytest.FixtureRequest) -> NomadServicePlace:
        return NomadServicePlace(FakeNomad(), request.param)


class TestNomadVar(BootstrapSuite):
    elects = True

    @pytest.fixture(params=[403])
    def place(self, request: pytest.FixtureRequest) -> NomadVarPlace:
        return NomadVarPlace(FakeNomad(), request.param)


# -- several in a row


class SeveralPlace(FilePlace):
    """A file that names peers, behind a list that has only this node."""

    async def bootstrap(self) -> Bootstrap:
        alone = StaticBootstrap([f"{ME.addrs[0]}"])
        return SeveralBootstraps([("alone", alone), ("file", polled(FileSource(self._path)))], ME, lambda: False)


class TestSeveral(NamingSuite, SeveralPeersSuite):
    @pytest.fixture
    def place(self, tmp_path: Path) -> SeveralPlace:
        return SeveralPlace(tmp_path / "peers")
