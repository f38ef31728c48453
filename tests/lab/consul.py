# retry_interval is the one setting that matters for the time a test takes: a client that is up before its server
# would try again after 30 s.  Gossip stays at Consul's defaults unless asked, because the faster one also declares
# nodes dead faster on a busy machine.

"""Consul agents."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from base64 import b64decode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lab import parts
from lab.netns import Response
from lab.network import Port, address
from lab.process import Failed, Process, until

HTTP_PORT = 8500
HTTPS_PORT = 8501
DNS_PORT = 8600
_REJOIN_AFTER = 6.0
_SERF_PORT = 8301
MASTER_TOKEN = "5e0c1a7e-0000-4000-8000-00000000c0de"

_HCL = """
performance { raft_multiplier = 1 }
ports { grpc = -1 https = %d }
disable_update_check = true
retry_interval = "1s"
"""
_FAST_GOSSIP = """
gossip_lan { gossip_interval = "100ms" probe_interval = "200ms" probe_timeout = "100ms" suspicion_mult = 2 }
"""
_ACL = f"""
acl {{
  enabled = true
  default_policy = "deny"
  tokens {{ master = "{MASTER_TOKEN}" agent = "{MASTER_TOKEN}" }}
}}
"""


@dataclass(frozen=True, slots=True)
class ConsulOptions:
    """How the agents of one cluster are configured.

    The first ``servers`` nodes from number ``first`` run a server, the others a client. ``wan``: addresses of servers
    of other datacenters, which this one's servers join.
    ``session_ttl_min`` allows sessions shorter than Consul's 10 s. ``acl`` denies what no token allows;
    MASTER_TOKEN may do everything. ``https`` also opens HTTPS_PORT, for which ``hcl``, which is added to every
    agent's configuration, has to name certificates.
    """

    servers: int = 1
    first: int = 0
    datacenter: str = "dc1"
    wan: tuple[str, ...] = ()
    fast_gossip: bool = False
    session_ttl_min: str | None = None
    acl: bool = False
    https: bool = False
    hcl: str = ""

    def configuration(self) -> str:
        hcl = _HCL % (HTTPS_PORT if self.https else -1) + self.hcl
        if self.fast_gossip:
            hcl += _FAST_GOSSIP
        if self.session_ttl_min is not None:
            hcl += f'session_ttl_min = "{self.session_ttl_min}"\n'
        if self.acl:
            hcl += _ACL
        return hcl

    @property
    def server_numbers(self) -> range:
        return range(self.first, self.first + self.servers)


class ConsulAgent:
    """One agent; HTTP and DNS on the node's loopback and its address."""

    def __init__(self, port: Port, directory: Path, options: ConsulOptions) -> None:
        self.ip = port.ip
        self.netns = port.netns
        self.name = f"n{port.index}"
        self.is_server = port.index in options.server_numbers
        self.token = MASTER_TOKEN if options.acl else None
        self.process: Process | None = None
        self._dir = directory
        self.options = options

    def start(self) -> None:
        """Start it; ``sees`` says when it is of use. A restarted one keeps its data."""
        data = self._dir / "data"
        data.mkdir(parents=True, exist_ok=True)
        config = self._dir / "agent.hcl"
        config.write_text(self.options.configuration())
        argv: list[str | Path] = [parts.consul(), "agent", f"-node={self.name}", f"-bind={self.ip}"]
        argv += [f"-client=127.0.0.1 {self.ip}", f"-data-dir={data}", f"-config-file={config}"]
        argv.append(f"-datacenter={self.options.datacenter}")
        if self.is_server:
            argv += ["-server", f"-bootstrap-expect={self.options.servers}"]
            argv += [f"-retry-join-wan={server}" for server in self.options.wan]
        servers = map(address, self.options.server_numbers)
        argv += [f"-retry-join={server}" for server in servers if server != self.ip]
        self.process = self.netns.start(f"consul {self.name}", argv, log_path=self._dir / "consul.log")

    def running(self) -> Process:
        if self.process is None:
            raise Failed(f"consul {self.name} was not started")
        return self.process

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: Mapping[str, str] | None = None,
        timeout: float = 10,
    ) -> Any:
        """An API call on this agent. Raises OSError, or Failed if the answer isn't 200. Returns the decoded JSON."""
        if query:
            path += "?" + urllib.parse.urlencode(query)
        answer = self._answer(method, path, body, timeout=timeout)
        document = self._checked(answer, f"{method} {path}")
        return json.loads(document) if document else None

    def get(self, path: str, **query: str) -> Any:
        return self.request("GET", path, query=query)

    def put(self, path: str, document: object = None, **query: str) -> Any:
        return self.request("PUT", path, None if document is None else json.dumps(document).encode(), query=query)

    def kv_entry(self, key: str) -> dict[str, Any] | None:
        """A key with its session and its indexes, or None."""
        answer = self._answer("GET", f"/v1/kv/{key}?consistent", None, timeout=10)
        if answer.status == 404:
            return None
        entry: dict[str, Any] = json.loads(self._checked(answer, key))[0]
        return entry

    def kv_get(self, key: str) -> bytes | None:
        entry = self.kv_entry(key)
        return None if entry is None else b64decode(entry["Value"] or "")

    def kv_put(self, key: str, value: bytes) -> bool:
        return bool(self.request("PUT", f"/v1/kv/{key}", value))

    def leader(self) -> str:
        """Address of the server that leads, or empty."""
        return str(self.get("/v1/status/leader"))

    def members(self) -> set[str]:
        """Names of the agents that this one sees alive."""
        return {member["Name"] for member in self.get("/v1/agent/members") if member["Status"] == 1}

    def instances(self, service: str, *, passing: bool = True) -> list[dict[str, Any]]:
        """The entries of a service in the catalog with their checks."""
        query = {"passing": "1"} if passing else {}
        return list(self.get(f"/v1/health/service/{service}", **query))

    def cli(self, *words: str, timeout: float = 20) -> str:
        """Consul's own command line, on this node."""
        env = {"CONSUL_HTTP_TOKEN": self.token} if self.token else {}
        return self.netns.run(parts.consul(), *words, timeout=timeout, env=env)

    def sees(self, count: int) -> bool:
        """Whether it answers, knows the leader, and sees ``count`` agents alive and registered.

        An agent that isn't in the catalog yet can't hold a session.
        """
        try:
            return bool(self.leader()) and len(self.members()) == count and len(self._healthy()) == count
        except (OSError, http.client.HTTPException, Failed):
            return False

    def gossips(self) -> bool:
        """Whether others can join it."""
        try:
            self.netns.connect(self.ip, _SERF_PORT).close()
        except OSError:
            return False
        return True

    def _healthy(self) -> set[str]:
        checks = self.get("/v1/health/state/passing")
        return {check["Node"] for check in checks if check["CheckID"] == "serfHealth"}

    def _answer(self, method: str, path: str, body: bytes | None, *, timeout: float) -> Response:
        headers = {"X-Consul-Token": self.token} if self.token else {}
        return self.netns.request(method, "127.0.0.1", HTTP_PORT, path, headers=headers, body=body, timeout=timeout)

    def _checked(self, answer: Response, what: str) -> bytes:
        if answer.status != 200:
            raise Failed(f"consul {self.name}: {what}: {answer.status} {answer.body.decode(errors='replace')}")
        return answer.body


def start_all(agents: Sequence[ConsulAgent]) -> None:
    """Start the agents of a new cluster; ``await_all`` waits for them."""
    servers = [agent for agent in agents if agent.is_server]
    for agent in servers:
        agent.start()
    for agent in servers:  # a client that finds no server would wait for retry_interval
        agent.running().until(agent.gossips, timeout=20, what=f"{agent.name} can be joined")
    for agent in agents:
        if not agent.is_server:
            agent.start()


def await_all(agents: Sequence[ConsulAgent], timeout: float = 30) -> None:
    """Wait until everybody knows the leader and sees everybody.

    Agents that join at the same moment may miss each other until they compare their lists, 30 s later: they join again.
    """
    rejoin_at = time.monotonic() + _REJOIN_AFTER

    def sees_all(agent: ConsulAgent) -> bool:
        nonlocal rejoin_at
        if agent.sees(len(agents)):
            return True
        if time.monotonic() > rejoin_at:
            rejoin_at = time.monotonic() + _REJOIN_AFTER
            with suppress(Failed):
                agent.cli("join", *(other.ip for other in agents if other is not agent))
        return False

    for agent in agents:
        what = f"{agent.name} sees all agents and a leader"
        agent.running().until(partial(sees_all, agent), timeout=timeout, what=what)


def await_member(observer: ConsulAgent, name: str, *, alive: bool, timeout: float = 30) -> None:
    """Wait until ``observer`` sees ``name`` alive, or no longer does."""
    what = f"{observer.name} sees {name} {'alive' if alive else 'failed'}"
    until(lambda: (name in observer.members()) is alive, timeout=timeout, what=what)
