# Samples are interleaved: a round is one sample of each server, in an order that changes, and a figure of one server
# is compared to that of another in the same round.  So a neighbour who takes the machine's time for a while disturbs a
# round, not one server.  A sample during which something else was busy is taken again, once.

"""Interleaved samples of several servers."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import proc
from bench.content import Content
from bench.process import Server, ServerError
from bench.tls import TlsClient
from bench.workload import Workload

DISTURBED = 0.35
"""Cores that something else may keep busy during a sample."""

_GRACE = 30.0
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Sample:
    """One server under one workload in one round; ``other`` is cores that something else kept busy meanwhile."""

    table: str
    load: str
    server: str
    round: int
    bulk: bool
    seconds: float
    requests: int
    bytes: int
    p50_us: float
    p99_us: float
    errors: int
    server_cpu: float
    client_cpu: float
    other: float

    @property
    def rate(self) -> float:
        """GiB/s of bulk, else answers per second."""
        return self.bytes / _GIB / self.seconds if self.bulk else self.requests / self.seconds

    @property
    def cost(self) -> float:
        """CPU of the server: seconds per GiB of bulk, else microseconds per answer."""
        if self.bulk:
            return self.server_cpu / (self.bytes / _GIB) if self.bytes else float("inf")
        return self.server_cpu / self.requests * 1e6 if self.requests else float("inf")


@dataclass(frozen=True, slots=True)
class Client:
    """Runs the drain client."""

    binary: Path
    content: Content

    def run(self, server: Server, workload: Workload, seconds: float, requests: int = 0) -> dict[str, float]:
        """What it printed. Raises ServerError."""
        piece = self.content.pieces[workload.of]
        command = [str(self.binary), str(server.port), str(workload.connections), f"{seconds:g}", workload.method]
        command += [piece.target, str(requests)]
        if workload.step:
            command += [str(workload.step), str(piece.size)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _GRACE)
        if done.returncode != 0:
            server.check()
            raise ServerError(f"{server.name}: the client failed: {done.stderr.strip()}")
        found: dict[str, float] = json.loads(done.stdout)
        return found


@dataclass(frozen=True, slots=True)
class Sampler:
    """Takes samples of ``seconds`` each when the machine is quiet; ``helpers`` are servers that may work as well."""

    client: Client | TlsClient
    gate: proc.Gate
    seconds: float
    helpers: tuple[Server, ...] = ()

    def rounds(self, servers: Sequence[Server], workloads: Sequence[Workload], count: int) -> Iterator[Sample]:
        """``count`` rounds of each workload."""
        for number in range(count):
            for workload in workloads:
                for server in random.sample(servers, len(servers)):
                    yield self._quiet_sample(server, workload, number)

    def warm(self, servers: Sequence[Server], workloads: Sequence[Workload]) -> None:
        """Let everybody do everything once."""
        for workload in {(each.of, each.method): each for each in workloads}.values():
            for server in servers:
                self.client.run(server, workload, 0.1)

    def _quiet_sample(self, server: Server, workload: Workload, number: int) -> Sample:
        self.gate.wait()
        sample = self._sample(server, workload, number)
        if sample.other > DISTURBED and self.gate.wait():
            sample = self._sample(server, workload, number)
        return sample

    def _sample(self, server: Server, workload: Workload, number: int) -> Sample:
        found, usage = measured(server, lambda: self.client.run(server, workload, self.seconds), self.helpers)
        return Sample(
            workload.table,
            workload.label,
            server.name,
            number,
            workload.is_bulk,
            found["seconds"],
            int(found["requests"]),
            int(found["bytes"]),
            found["p50_us"],
            found["p99_us"],
            int(found["errors"] + found["bad_status"]),
            usage.server,
            found["client_cpu"],
            usage.other,
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds of a server, and cores that were kept busy by what has no part in the measurement."""

    server: float
    other: float


def measured(
    server: Server, work: Callable[[], dict[str, float]], helpers: Sequence[Server] = ()
) -> tuple[dict[str, float], Usage]:
    """Do ``work``, a run of the client, and say what it cost."""

    def used() -> tuple[float, float, float]:
        return proc.cpu_seconds(server.pid), sum(proc.cpu_seconds(each.pid) for each in helpers), proc.busy()[0]

    before = used()
    found = work()
    ours, theirs, machine = (after - earlier for after, earlier in zip(used(), before, strict=True))
    other = machine - ours - theirs - found["client_cpu"]
    return found, Usage(ours, other / found["seconds"])
