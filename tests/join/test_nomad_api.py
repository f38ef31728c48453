"""The address of Nomad, its API's client, and the peers that it knows as services."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import rsa
from lab.certificates import Authority

from spegel_consul.join.polled import SourceError
from spegel_consul.join.sources.nomad_api import NomadClient, NomadError, NomadSettings, variable_path
from spegel_consul.join.sources.nomad_service import NomadServiceSource
from spegel_consul.peers import PeerInfo
from tests.join.fakenomad import FakeNomad


@pytest.fixture
def nomad() -> FakeNomad:
    return FakeNomad()


def test_where_nomad_is() -> None:
    assert NomadSettings.from_env({}).address == "http://127.0.0.1:4646"
    task = NomadSettings.from_env(
        {"NOMAD_UNIX_ADDR": "unix:///secrets/api.sock", "NOMAD_TOKEN": "t", "NOMAD_SECRETS_DIR": "/secrets"}
    )
    assert (task.uds, task.token, task.token_file) == ("/secrets/api.sock", "t", "/secrets/nomad_token")
    named = NomadSettings.from_env({"NOMAD_UNIX_ADDR": "unix:///s", "NOMAD_ADDR": "https://nomad:4646/"})
    assert (named.uds, named.address) == (None, "https://nomad:4646")


def test_where_nomad_is_for_a_task_that_is_not_told(tmp_path: Path) -> None:
    """Before 1.10 Nomad makes the socket of the task API and names it in no variable."""
    env = {"NOMAD_SECRETS_DIR": str(tmp_path), "NOMAD_TOKEN": "t"}
    assert NomadSettings.from_env(env).address == "http://127.0.0.1:4646"  # Nomad before 1.5
    path = str(tmp_path / "api.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        assert NomadSettings.from_env(env).uds == path
        without_identity = {"NOMAD_SECRETS_DIR": str(tmp_path)}  # the task API answers no task without a token
        assert NomadSettings.from_env(without_identity).uds is None
        (tmp_path / "nomad_token").touch()
        assert NomadSettings.from_env(without_identity).uds == path
        assert NomadSettings.from_env({**env, "NOMAD_UNIX_ADDR": "unix:///s"}).uds == "/s"
        assert NomadSettings.from_env({**env, "NOMAD_ADDR": "http://nomad:4646"}).uds is None


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"NOMAD_ADDR": "nomad:4646"}, "NOMAD_ADDR"),
        ({"NOMAD_UNIX_ADDR": "unix://secrets/api.sock"}, "NOMAD_UNIX_ADDR"),
        ({"NOMAD_CLIENT_CERT": "/c"}, "NOMAD_CLIENT_KEY"),
    ],
)
def test_bad_settings_are_named(env: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        NomadSettings.from_env(env)


def test_paths_of_variables() -> None:
    assert variable_path("/nomad/jobs/spegel/leader/") == "/v1/var/nomad/jobs/spegel/leader"
    for bad in ("", "/", "a b", "a?b", "x" * 200):
        with pytest.raises(ValueError, match="is not the path of a Nomad variable"):
            variable_path(bad)


async def test_no_process_listens(tmp_path: Path) -> None:
    for settings in (
        NomadSettings("http://127.0.0.1:1"),
        NomadSettings("http://localhost", str(tmp_path / "api.sock")),
    ):
        async with NomadClient(settings) as client:
            with pytest.raises(NomadError) as caught:
                await client.request("GET", "/v1/var/x")
        assert caught.value.status == 0
        assert "\n" not in str(caught.value)


class TlsAgent:
    """A Nomad that wants a client certificate and notes the names in those that it is shown."""

    def __init__(self, authority: Authority, home: Path) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.path))
        context.load_cert_chain(*authority.issue(home, "server", "127.0.0.1"))
        context.verify_mode = ssl.CERT_REQUIRED
        shown = self.shown = []  # type: list[str]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert isinstance(self.connection, ssl.SSLSocket)
                shown.append(dict(self.connection.getpeercert()["subject"][0])["commonName"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def tls_agent(tmp_path: Path) -> Iterator[tuple[TlsAgent, Authority]]:
    authority = Authority.make(tmp_path)
    agent = TlsAgent(authority, tmp_path)
    thread = threading.Thread(target=agent.server.serve_forever, args=(0.05,))
    thread.start()
    yield agent, authority
    agent.server.shutdown()
    thread.join(10)
    agent.server.server_close()


async def test_renewed_certificates_are_used_without_a_restart(
    tls_agent: tuple[TlsAgent, Authority], tmp_path: Path
) -> None:
    agent, authority = tls_agent
    cert, key = authority.issue(tmp_path, "first", "client")
    settings = NomadSettings(agent.url, cafile=str(authority.path), client_cert=str(cert), client_key=str(key))
    async with NomadClient(settings) as client:
        await client.request("GET", "/v1/status/leader")
        other_type = rsa.generate_private_key(65537, 2048)
        for new, old in zip(authority.issue(tmp_path, "second", "client", key=other_type), (cert, key), strict=True):
            new.replace(old)
        with trio.fail_after(20):
            while agent.shown[-1] != "second":
                await trio.sleep(0.2)
                await client.request("GET", "/v1/status/leader")
    assert agent.shown[0] == "first"


async def test_three_services_and_never_oneself(nomad: FakeNomad) -> None:
    me = PeerInfo("me", ("/ip4/10.0.0.1/tcp/5001",))
    junk = [None, {}, {"Address": "", "Port": 1}, {"Address": "10.0.0.8", "Port": "5001"}, {"Address": "x", "Port": 0}]
    nomad.services["spegel-router"] = [
        {"AllocID": "mine", "Address": "10.0.0.100", "Port": 5001},
        *({"AllocID": f"a{n}", "Address": f"10.0.0.{n}", "Port": 5001} for n in range(1, 40)),
        *junk,
    ]
    source = NomadServiceSource(nomad.client(), "spegel-router", me, "mine")
    peers = await source.ask()
    assert len(peers) == 3
    assert me.addrs[0] not in {peer.addrs[0] for peer in peers}
    # one that is not chosen goes: the choice stays
    chosen = {peer.addrs[0] for peer in peers}
    nomad.services["spegel-router"] = [
        entry
        for entry in nomad.services["spegel-router"]
        if entry and f"/ip4/{entry.get('Address')}/tcp/5001" in chosen | {"/ip4/10.0.0.20/tcp/5001"}
    ]
    assert len(await source.ask()) == 3
    assert {peer.addrs[0] for peer in await source.ask()} == chosen


@pytest.mark.parametrize("fault", [403, 409, 429, 500, "html", "cut"])
async def test_services_that_are_not_told_are_a_problem_in_one_line(nomad: FakeNomad, fault: int | str) -> None:
    nomad.links["n"] = fault
    source = NomadServiceSource(nomad.client(), "spegel-router", PeerInfo("me", ()))
    with pytest.raises(SourceError) as caught:
        await source.ask()
    assert str(caught.value)
    assert "\n" not in str(caught.value)
