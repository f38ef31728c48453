# Everything is started first and awaited afterwards, because starting up is mostly waiting.  At the end nobody is
# asked to leave in peace: a Consul client would take five seconds for it, and a test that is about leaving does that
# itself.  Namespaces go last and take with them whatever a daemon started on its own.

"""Nodes with the daemons that a test asks for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from lab import consul as consul_module
from lab import parts
from lab.consul import DNS_PORT, ConsulAgent, ConsulOptions
from lab.containerd import CRI_NAMESPACE, Containerd
from lab.docker import NAMESPACE as DOCKER_NAMESPACE
from lab.docker import Dockerd
from lab.docker_io import DockerIo
from lab.netns import Netns, Response
from lab.network import Network, Port
from lab.process import Failed, Process
from lab.registry import PORT as REGISTRY_PORT
from lab.registry import Registry
from lab.run_dir import RunDir
from lab.sidecar import Flag, Sidecar

T = TypeVar("T")


class Node:
    """A machine: its network, its daemons, its sidecar."""

    def __init__(self, port: Port, directory: Path) -> None:
        self.index = port.index
        self.name = f"n{port.index}"
        self.ip = port.ip
        self.port = port
        self.netns: Netns = port.netns
        self.dir = directory
        self._consul: ConsulAgent | None = None
        self._containerd: Containerd | None = None
        self._docker: Dockerd | None = None
        self._sidecar: Sidecar | None = None

    def __repr__(self) -> str:
        return f"<{self.name} {self.ip}>"

    @property
    def consul(self) -> ConsulAgent:
        return _there(self._consul, "consul", self)

    @property
    def containerd(self) -> Containerd:
        return _there(self._containerd, "containerd", self)

    @property
    def docker(self) -> Dockerd:
        return _there(self._docker, "docker", self)

    @property
    def has_docker(self) -> bool:
        return self._docker is not None

    @property
    def sidecar(self) -> Sidecar:
        return _there(self._sidecar, "sidecar", self)

    def add_consul(self, options: ConsulOptions) -> ConsulAgent:
        self._consul = ConsulAgent(self.port, self.dir / "consul", options)
        return self._consul

    def add_containerd(self, version: str, **options: Any) -> Containerd:
        """A containerd on this node, started but not awaited. See Containerd for the options."""
        self._containerd = Containerd(self.port, self.dir / "ctd", version, **options)
        self._containerd.start()
        return self._containerd

    def add_docker(self, version: str = "28", **options: Any) -> Dockerd:
        """A Docker on this node, started but not awaited. See Dockerd for the options."""
        self._docker = Dockerd(self.port, self.dir / "dk", version, **options)
        self._docker.start()
        return self._docker

    def start_sidecar(
        self,
        *,
        wait: bool = True,
        env: Mapping[str, str] | None = None,
        mounts: Mapping[Path, str] | None = None,
        timeout: float = 30,
        **flags: Flag,
    ) -> Sidecar:
        """Start the product here, in front of the containerd or Docker that the node has.

        ``mounts``: directories where it, and nobody else, sees a new tmpfs with these options.
        """
        given: dict[str, Flag] = {
            "node_name": self.name,
            "data_dir": self.dir / "spegel",
            "log_level": "debug",
            "log_format": "json",
        }
        if self._containerd is not None:
            given |= {
                "containerd_sock": self._containerd.sock,
                "containerd_namespace": CRI_NAMESPACE,
                "containerd_content_path": self._containerd.content_path,
                "containerd_registry_config_path": self._containerd.certs_d,
            }
        elif self._docker is not None:
            given |= {
                "containerd_sock": self._docker.containerd_sock,
                "containerd_namespace": DOCKER_NAMESPACE,
                "containerd_content_path": self._docker.content_path,
                "docker_sock": self._docker.sock,
            }
        given["bootstrap_kind"] = "consul" if self._consul is not None else "static"
        variables = dict(env or {})
        if self._consul is not None and self._consul.token is not None:
            variables.setdefault("CONSUL_HTTP_TOKEN", self._consul.token)
        self._sidecar = Sidecar(self.port, self.dir / "sidecar", given | flags, variables, mounts)
        if wait:
            self._sidecar.await_ready(timeout)
        return self._sidecar

    def spegel(self, *words: str | Path, timeout: float = 30) -> str:
        """A command of the product, run to its end on this node; returns its output."""
        return self.netns.run(sys.executable, "-m", "spegel_consul", *words, timeout=timeout)

    def configure(self, *words: str, targets: Sequence[str] = ()) -> str:
        """Point the node's runtime at its own sidecar, or at ``targets``, with the product's own command."""
        return self.spegel(
            "configuration",
            f"--mirror-targets={','.join(targets) or f'http://{self.ip}:5000'}",
            *self.places,
            *words,
        )

    @property
    def places(self) -> list[str]:
        """The flags that say where this node's runtimes have their configuration."""
        containerd, docker = self._containerd, self._docker
        nowhere = self.dir / "nowhere"
        return [
            f"--containerd-registry-config-path={containerd.certs_d if containerd else nowhere / 'c/certs.d'}",
            f"--docker-certs-path={docker.certs_d if docker else nowhere / 'd/certs.d'}",
            f"--docker-daemon-config={docker.config if docker else nowhere / 'd/daemon.json'}",
        ]

    def request(
        self,
        path: str,
        *,
        to: Node | None = None,
        port: int = 5000,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        timeout: float = 10,
    ) -> Response:
        """An HTTP request from this node to itself or to another."""
        host = (to or self).ip
        return self.netns.request(method, host, port, path, headers=headers, timeout=timeout)

    def crane(self, *words: str, timeout: float = 60) -> str:
        """A registry client; ``validate --remote REF`` downloads an image and checks each digest."""
        return self.netns.run(parts.crane(), "--insecure", *words, timeout=timeout)

    def dig(self, name: str, record_type: str = "A", *options: str) -> list[str]:
        """The answers of this node's Consul, one a line as ``dig +short`` prints them."""
        argv = ["dig", "@127.0.0.1", "-p", str(DNS_PORT), "+short", "+time=2", "+tries=2", *options, name, record_type]
        return self.netns.run(*argv).splitlines()

    def processes(self) -> Iterator[Process]:
        for daemon in (self._sidecar, self._docker, self._containerd, self._consul):
            if daemon is not None and daemon.process is not None:
                yield daemon.process

    def fallen(self) -> Process | None:
        """The sidecar, if it ended and nobody told it to."""
        sidecar = self._sidecar
        return sidecar.process if sidecar is not None and not sidecar.stopped and not sidecar.process.alive else None


class Cluster:
    """``nodes`` machines on one network. Consul's servers are the first of them; ``[i]`` is a node."""

    def __init__(
        self,
        nodes: int = 3,
        *,
        consul: ConsulOptions | bool = True,
        containerd: str | Sequence[str | None] | None = "21",
    ) -> None:
        self._run_dir = RunDir()
        self.dir = self._run_dir.path
        self.network = Network(nodes, self._run_dir)
        self.nodes = [Node(port, self.dir / f"n{port.index}") for port in self.network.ports]
        self._consul = ConsulOptions() if consul is True else consul or None
        self._versions = [containerd] * nodes if isinstance(containerd, str | None) else list(containerd)
        self._registries: list[Registry] = []

    def __getitem__(self, index: int) -> Node:
        return self.nodes[index]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __enter__(self) -> Cluster:
        self._run_dir.__enter__()
        try:
            self.network.__enter__()
            agents = [node.add_consul(self._consul) for node in self.nodes] if self._consul is not None else []
            consul_module.start_all(agents)
            stores = [
                node.add_containerd(version)
                for node, version in zip(self.nodes, self._versions, strict=True)
                if version is not None
            ]
            for store in stores:
                store.await_ready()
            consul_module.await_all(agents)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        fallen = [process for node in self.nodes if (process := node.fallen()) is not None]
        report = "\n".join(f"{process} ended with status {process.returncode}\n{process.tail()}" for process in fallen)
        self.close()
        if report and exc is None:
            raise Failed(report)

    def start_registry(self, on: int = 0, tcp_port: int = REGISTRY_PORT) -> Registry:
        """The upstream, on node ``on``, ready to be pushed to."""
        registry = Registry(self.nodes[on].port, self.dir / f"registry{len(self._registries)}", tcp_port)
        self._registries.append(registry)
        registry.start()
        registry.await_ready()
        return registry

    def start_docker_io(self, on: int = 0) -> DockerIo:
        """A registry for those daemons that are told to take it for docker.io, ready to be pushed to."""
        docker_io = DockerIo.make(self.nodes[on].port, self.dir / "docker.io")
        self._registries.append(docker_io.registry)
        docker_io.registry.start()
        docker_io.registry.await_ready()
        return docker_io

    def close(self) -> None:
        """End everything that was started and remove every trace."""
        upstream = [registry.process for registry in self._registries if registry.process is not None]
        with ExitStack() as stack:
            stack.callback(self._run_dir.remove)
            stack.callback(self.network.remove)
            for process in [*upstream, *(process for node in self.nodes for process in node.processes())]:
                stack.callback(process.kill9)


MakeCluster = Callable[..., Cluster]


def _there(found: T | None, what: str, node: Node) -> T:
    if found is None:
        raise Failed(f"{node} has no {what}")
    return found
