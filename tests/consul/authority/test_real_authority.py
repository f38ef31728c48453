"""A real Consul with a secondary datacenter, which signs by an intermediate of the primary's root."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from lab.connect_authority import ConnectAuthority

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.authority.consul_tls import ConsulTls
from spegel_consul.http.peer_tls import Encryption
from tests.consul.authority.conftest import until
from tests.consul.authority.handshake import agree, handshake
from tests.consul.realconsul import ConsulAgent

pytestmark = pytest.mark.real


@pytest.fixture
def datacenters(tmp_path: Path) -> Iterator[tuple[ConsulAgent, ConsulAgent]]:
    shared = {"primary_datacenter": "dc1", "connect": {"enabled": True}}
    with ExitStack() as stack:
        agents: list[ConsulAgent] = []
        for name in ("dc1", "dc2"):
            directory = tmp_path / name
            directory.mkdir()
            join = {"retry_join_wan": [f"127.0.0.1:{agents[0].ports['serf_wan']}"]} if agents else {}
            config = {**shared, "datacenter": name, "node_name": name, **join}
            agents.append(stack.enter_context(ConsulAgent(directory, config)))
        yield agents[0], agents[1]


@asynccontextmanager
async def following(agent: ConsulAgent) -> AsyncIterator[ConsulTls]:
    """A node that takes its certificates from the agent."""
    async with ConsulClient(agent.settings()) as client, trio.open_nursery() as nursery:
        await agent.ready(client)
        tls = ConsulTls(client, Encryption.REQUIRE, None)
        await nursery.start(tls.run)
        yield tls
        nursery.cancel_scope.cancel()


async def test_nodes_of_two_datacenters_believe_each_other(
    datacenters: tuple[ConsulAgent, ConsulAgent], tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        primary, secondary = [await stack.enter_async_context(following(agent)) for agent in datacenters]
        # until it has heard of the primary, the secondary has no authority
        await until(lambda: primary.server() and secondary.server())
        assert (chain(primary), chain(secondary) > 1) == (1, True)
        assert agree(primary, secondary)
        assert agree(secondary, primary)
        by_server, _ = handshake(primary, secondary)
        assert by_server is not None
        assert "/dc/dc2/" in by_server["subjectAltName"][0][1]
        domain = json.loads(datacenters[0].get("/v1/agent/connect/ca/roots"))["TrustDomain"]
        key, certificate = ConnectAuthority(domain).exported()
        config = {"LeafCertTTL": "72h", "PrivateKey": key, "RootCert": certificate}
        document = tmp_path / "authority.json"
        document.write_text(json.dumps({"Provider": "consul", "Config": config}))
        datacenters[0].command("connect", "ca", "set-config", f"-config-file={document}")
        for tls in (primary, secondary):
            await until(lambda tls=tls: len(tls._roots.certificates) == 2)
        assert agree(primary, secondary)
        assert agree(secondary, primary)


def chain(tls: ConsulTls) -> int:
    """The number of certificates that the node presents."""
    used = tls._used()
    assert used is not None
    return used[0].chain.count("-----BEGIN CERTIFICATE-----")
