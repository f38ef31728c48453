"""The processes of the demonstration: sidecars, and a Consul agent if ``consul`` is on PATH.

Each process has a session of its own, so that Ctrl-C reaches only the demonstration, which stops them in order. If a
sidecar ends early, the demonstration fails with the last lines of its log.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio
from rich.console import Console

from spegel_consul.dev.sample import write_layout
from spegel_consul.error_words import in_words
from spegel_consul.lean.dataclass import dataclass

LOOPBACK = "127.0.0.1"
START_TIMEOUT = 60.0
_STOP_TIMEOUT = 15.0
_PORTS = 3  # of a node, one after another: registry, router, metrics


class DevError(Exception):
    """The demonstration can't go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node on a loopback address of its own, so that all have the same ports, as on machines of their own."""

    number: int
    address: str
    port: int
    home: Path

    @property
    def name(self) -> str:
        return f"node{self.number + 1}"

    @property
    def registry(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def router(self) -> str:
        return f"{self.address}:{self.port + 1}"

    @property
    def metrics(self) -> str:
        return f"{self.address}:{self.port + 2}"

    @property
    def page(self) -> str:
        """The URL of its status page."""
        return f"http://{self.metrics}/debug/web/"

    @property
    def layout(self) -> Path:
        return self.home / "layout"

    @property
    def log(self) -> Path:
        return self.home / "log"


def print_pages(console: Console, node: Node) -> None:
    """Print the pages of a node, and of all nodes, before anything else."""
    console.print(f"status page    {node.page}  ({node.name})")
    console.print(f"whole cluster  {node.page}cluster")


def plain_client(address: str | None = None) -> httpx.AsyncClient:
    """Return a client of plain HTTP, which asks from ``address``; another one would read the authorities for 40 ms."""
    transport = httpx.AsyncHTTPTransport(verify=False, trust_env=False, local_address=address)
    return httpx.AsyncClient(transport=transport, trust_env=False, timeout=60.0)


async def ready(client: httpx.AsyncClient, node: Node) -> None:
    reason = "no answer"
    with trio.move_on_after(START_TIMEOUT):
        while True:
            try:
                response = await client.get(f"http://{node.registry}/readyz")
            except httpx.TransportError as exc:
                reason = in_words(exc)
            else:
                if response.status_code == 200:
                    return
                reason = response.text.strip()
            await trio.sleep(0.05)
    raise DevError(f"{node.name} is not ready after {START_TIMEOUT:g} s: {reason}")


def make_nodes(count: int, home: Path, port: int) -> list[Node]:
    """Nodes with empty stores below ``home``; ``port`` is the first of their three ports. Raises DevError.

    A port that is in use is an error at once, because another demonstration answers there like a node of this one.
    """
    nodes = [Node(number, f"127.0.0.{number + 1}", port, home / f"node{number + 1}") for number in range(count)]
    for node in nodes:
        for each in range(port, port + _PORTS):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sock.bind((node.address, each))
                except OSError as why:
                    at = f"{node.address}:{each}"
                    raise DevError(f"{at}: {in_words(why)}; --port names the first of {_PORTS} other ports") from None
        node.layout.mkdir(parents=True)
        write_layout(node.layout, [])
    return nodes


async def learn_names(client: httpx.AsyncClient, nodes: Sequence[Node]) -> None:
    """Have each node look at the whole cluster, because without a catalog it learns the others' names by that."""
    for node in nodes:
        await client.get(f"http://{node.metrics}/api/cluster")


@asynccontextmanager
async def sidecars(nodes: Sequence[Node], consul: str | None, **flags: str) -> AsyncIterator[None]:
    """Run the nodes' sidecars; ``flags`` are further ones of all, with underscores."""
    async with trio.open_nursery() as nursery:
        stopping = trio.Event()

        async def watch(node: Node, process: trio.Process) -> None:
            await process.wait()
            if not stopping.is_set():
                tail = "\n".join(node.log.read_text(errors="replace").splitlines()[-5:])
                raise DevError(f"{node.name} exited with {process.returncode}:\n{tail}")

        processes: list[trio.Process] = []
        try:
            for node in nodes:
                process = await _start(_command(node, nodes[0], consul, flags), node.log, consul)
                processes.append(process)
                nursery.start_soon(watch, node, process)
            yield
        finally:
            stopping.set()
            with trio.move_on_after(3 * _STOP_TIMEOUT, shield=True):
                await _stop(processes)
            nursery.cancel_scope.cancel()


def _command(node: Node, first: Node, consul: str | None, more: Mapping[str, str]) -> list[str]:
    flags = {
        "registry-addr": node.registry,
        "router-addr": node.router,
        "metrics-addr": node.metrics,
        "advertise-addr": node.address,
        "node-name": node.name,
        "data-dir": str(node.home / "data"),
        "layout-path": str(node.layout),
        "bootstrap-kind": "consul" if consul else "static",
    }
    flags |= {name.replace("_", "-"): value for name, value in more.items()}
    if consul is None:
        flags["static-bootstrap-peers"] = first.router
    return [sys.executable, "-m", "spegel_consul", "registry", *(f"--{name}={value}" for name, value in flags.items())]


async def _start(command: Sequence[str], log: Path, consul: str | None) -> trio.Process:
    environment = dict(os.environ)
    if consul is not None:
        environment["CONSUL_HTTP_ADDR"] = consul
    # in a session of its own, because Ctrl-C goes to the whole session of the terminal
    with log.open("wb") as out:
        return await trio.lowlevel.open_process(
            list(command), stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


async def _stop(processes: Sequence[trio.Process]) -> None:
    for process in processes:
        if process.returncode is None:
            process.terminate()
    with trio.move_on_after(_STOP_TIMEOUT):
        for process in processes:
            await process.wait()
    with trio.move_on_after(_STOP_TIMEOUT):
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


@asynccontextmanager
async def own_consul(console: Console, home: Path) -> AsyncIterator[str | None]:
    """Run a Consul agent; its HTTP address, or None if there is no ``consul`` on PATH."""
    binary = shutil.which("consul")
    if binary is None:
        console.print("no consul on PATH: the nodes find each other through node1 (static bootstrap)")
        yield None
        return
    http, dns, server, serf_lan, serf_wan = _free_ports(5)
    address = f"{LOOPBACK}:{http}"
    command = [binary, "agent", "-dev", "-node=dev", f"-bind={LOOPBACK}", f"-client={LOOPBACK}"]
    command += [f"-http-port={http}", f"-dns-port={dns}", f"-server-port={server}", "-grpc-port=-1"]
    command += [f"-serf-lan-port={serf_lan}", f"-serf-wan-port={serf_wan}"]
    log = home / "consul.log"
    process = await _start(command, log, None)
    try:
        async with plain_client() as client:
            with trio.move_on_after(START_TIMEOUT) as scope:
                while not await _has_leader(client, address):
                    if process.poll() is not None:
                        raise DevError(f"consul exited:\n{log.read_text(errors='replace')[-500:]}")
                    await trio.sleep(0.05)
            if scope.cancelled_caught:
                raise DevError(f"consul has no leader after {START_TIMEOUT:g} s")
        console.print(f"consul agent at http://{address}")
        yield address
    finally:
        with trio.move_on_after(3 * _STOP_TIMEOUT, shield=True):
            await _stop([process])


async def _has_leader(client: httpx.AsyncClient, address: str) -> bool:
    try:
        response = await client.get(f"http://{address}/v1/status/leader")
    except httpx.TransportError:
        return False
    return response.status_code == 200 and response.json() != ""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
