"""The transport to real agents: a Unix socket, IPv6 and mutual TLS."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest
import trio
from lab.certificates import Authority
from lab.process import HANG
from structlog.testing import capture_logs

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import ConsulUnavailable, RequestRefused
from spegel_consul.consul.api.consul_settings import ConsulSettings
from tests.consul.asking import put_key
from tests.consul.realconsul import ConsulAgent, consul_binary

pytestmark = pytest.mark.real


async def test_unix_socket(tmp_path: Path) -> None:
    path, threads = tmp_path / "consul.sock", threading.enumerate()
    with ConsulAgent(tmp_path, {"addresses": {"http": f"unix://{path}"}}) as agent:
        with trio.fail_after(HANG):
            while not path.exists():
                await trio.sleep(0.01)
        async with ConsulClient(ConsulSettings.from_env({"CONSUL_HTTP_ADDR": f"unix://{path}"})) as client:
            await agent.ready(client)
            assert await put_key(client, "a/b", b"1")
            index, entry = await client.kv_get("a/b")
            assert entry.value == b"1"
            with trio.move_on_after(0.1) as scope:
                await client.kv_get("a/b", index)
            assert scope.cancelled_caught
            assert set(threading.enumerate()) <= set(threads)  # others may have ended


async def test_ipv6(tmp_path: Path) -> None:
    with ConsulAgent(tmp_path, {"addresses": {"http": "::1"}}) as agent:
        settings = ConsulSettings.from_env({"CONSUL_HTTP_ADDR": f"[::1]:{agent.ports['http']}"})
        async with ConsulClient(settings) as client:
            await agent.ready(client)
            assert await client.status_leader()


async def _a_renewed_certificate_is_taken(agent: ConsulAgent, directory: Path, ca: str, mine: dict[str, str]) -> None:
    """One that the agent doesn't know is replaced on the disk by one that it does; junk in between changes nothing."""
    cert, key = Authority.make(directory, "stranger").issue(directory, "ours", "127.0.0.1")
    settings = agent.settings(
        CONSUL_HTTP_SSL="1", CONSUL_CACERT=ca, CONSUL_CLIENT_CERT=str(cert), CONSUL_CLIENT_KEY=str(key)
    )
    async with ConsulClient(settings) as client:
        with pytest.raises(ConsulUnavailable):
            await client.status_leader()
        cert.write_text("half")
        await trio.sleep(1.1)
        with capture_logs() as logs, pytest.raises(ConsulUnavailable):
            await client.status_leader()
        assert [entry["event"] for entry in logs] == ["new TLS files are not used"]
        assert str(cert) in logs[0]["error"]
        for old, new in ((cert, mine["CONSUL_CLIENT_CERT"]), (key, mine["CONSUL_CLIENT_KEY"])):
            old.write_bytes(Path(new).read_bytes())
        with trio.fail_after(HANG):
            while True:
                try:
                    assert await client.status_leader()
                    break
                except ConsulUnavailable:
                    await trio.sleep(0.1)


async def test_mutual_tls(tmp_path: Path) -> None:
    def consul(*args: str) -> None:
        subprocess.run([consul_binary(), "tls", *args], cwd=tmp_path, check=True, capture_output=True, timeout=20)

    consul("ca", "create")
    consul("cert", "create", "-server", "-dc", "dc1")  # for server.dc1.consul, localhost and 127.0.0.1
    consul("cert", "create", "-client", "-dc", "dc1")
    ca = str(tmp_path / "consul-agent-ca.pem")
    config = {
        "ca_file": ca,
        "cert_file": str(tmp_path / "dc1-server-consul-0.pem"),
        "key_file": str(tmp_path / "dc1-server-consul-0-key.pem"),
        "verify_incoming": True,
    }
    mine = {
        "CONSUL_CLIENT_CERT": str(tmp_path / "dc1-client-consul-0.pem"),
        "CONSUL_CLIENT_KEY": str(tmp_path / "dc1-client-consul-0-key.pem"),
    }
    with ConsulAgent(tmp_path, config, tls=True) as agent:
        good = agent.settings(CONSUL_HTTP_SSL="true", CONSUL_CACERT=ca, **mine)
        async with ConsulClient(good) as client:
            await agent.ready(client)
            assert await put_key(client, "a", b"1")
        named = agent.settings(
            CONSUL_HTTP_SSL="1", CONSUL_CACERT=ca, CONSUL_TLS_SERVER_NAME="server.dc1.consul", **mine
        )
        async with ConsulClient(named) as client:
            assert await client.status_leader()
        wrong = agent.settings(CONSUL_HTTP_SSL="1", CONSUL_CACERT=ca, CONSUL_TLS_SERVER_NAME="elsewhere", **mine)
        async with ConsulClient(wrong) as client:
            with pytest.raises(
                ConsulUnavailable,
                match=r"certificate is not valid for 'elsewhere'.*\(CONSUL_TLS_SERVER_NAME is the name",
            ):
                await client.status_leader()
        async with ConsulClient(agent.settings(CONSUL_HTTP_SSL="1", **mine)) as client:
            with pytest.raises(ConsulUnavailable, match=r"certificate verify failed.*CONSUL_CACERT names another"):
                await client.status_leader()
        consul("ca", "create", "-domain", "other")
        others = str(tmp_path / "other-agent-ca.pem")
        async with ConsulClient(agent.settings(CONSUL_HTTP_SSL="1", CONSUL_CACERT=others, **mine)) as client:
            with pytest.raises(ConsulUnavailable) as caught:
                await client.status_leader()
            assert f"(its certificate is not signed by CONSUL_CACERT, {others})" in str(caught.value)
        unverified = agent.settings(CONSUL_HTTP_SSL="1", CONSUL_HTTP_SSL_VERIFY="false", **mine)
        async with ConsulClient(unverified) as client:
            assert await client.status_leader()
        async with ConsulClient(agent.settings(CONSUL_HTTP_SSL="1", CONSUL_CACERT=ca)) as client:
            with pytest.raises(ConsulUnavailable):
                await client.status_leader()
        await _a_renewed_certificate_is_taken(agent, tmp_path, ca, mine)
        async with ConsulClient(agent.settings()) as client:
            with pytest.raises(RequestRefused, match="HTTP request to an HTTPS server"):
                await client.status_leader()
