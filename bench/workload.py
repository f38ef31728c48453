"""What is asked of the servers, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.content import MIB

OWN, MIRROR, MANIFESTS, RANGES = "own blobs", "mirrored blobs", "manifests", "ranges"
OWN_TLS, MIRROR_TLS = "own TLS", "mirrored TLS"

_CHUNK = 8 * MIB
_OWN_TLS = {"1 MiB": (1,), "100 MiB": (1,)}
_MIRROR_TLS = {"1 MiB": (4,), "100 MiB": (1,)}


@dataclass(frozen=True, slots=True)
class Workload:
    """``connections`` that ask for the piece ``of`` again and again; with ``step`` in ranges of that many bytes."""

    table: str
    of: str
    connections: int
    method: str = "GET"
    step: int = 0

    @property
    def label(self) -> str:
        ranged = f" from N-, {self.step // MIB} MiB each" if self.step else ""
        return f"{self.method} {self.of}{ranged} x{self.connections}"

    @property
    def is_bulk(self) -> bool:
        """Whether bytes count, not answers."""
        return self.of != "manifest" and self.method == "GET"


@dataclass(frozen=True, slots=True)
class Plan:
    """``seconds`` per sample, ``rounds`` of them per server and workload; ``patience`` is how long in seconds a sample
    waits for a quiet machine, ``budget`` how long all of them do."""

    workloads: tuple[Workload, ...]
    rounds: int
    seconds: float
    patience: float
    budget: float
    registry: bool
    cold_rounds: int
    memory_seconds: float
    mirror_memory: bool

    def of(self, table: str) -> tuple[Workload, ...]:
        """The workloads of one table."""
        return tuple(workload for workload in self.workloads if workload.table == table)


def _blobs(table: str, cases: Mapping[str, tuple[int, ...]]) -> list[Workload]:
    return [Workload(table, of, connections) for of, many in cases.items() for connections in many]


def full(rounds: int) -> Plan:
    """Everything."""
    sizes = {"1 MiB": (1, 4, 16), "100 MiB": (1, 4, 16), "1 GiB": (1, 4, 16)}
    workloads = _blobs(OWN, sizes) + _blobs(MIRROR, sizes)
    workloads += _blobs(OWN_TLS, _OWN_TLS) + _blobs(MIRROR_TLS, _MIRROR_TLS)
    workloads += [Workload(MANIFESTS, "manifest", many, method) for method in ("GET", "HEAD") for many in (1, 16, 64)]
    workloads += [Workload(RANGES, "1 GiB", many, step=_CHUNK) for many in (1, 4)]
    return Plan(tuple(workloads), rounds, 1.2, 10.0, 600.0, True, max(3, rounds), 30.0, True)


def quick() -> Plan:
    """A look at each table in about a minute."""
    workloads = _blobs(OWN, {"1 MiB": (4,), "100 MiB": (1, 4)})
    workloads += _blobs(MIRROR, {"1 MiB": (4,), "100 MiB": (4,)})
    workloads += _blobs(OWN_TLS, _OWN_TLS) + _blobs(MIRROR_TLS, _MIRROR_TLS)
    workloads += [Workload(MANIFESTS, "manifest", 16), Workload(MANIFESTS, "manifest", 16, "HEAD")]
    workloads += [Workload(RANGES, "1 GiB", 4, step=_CHUNK)]
    return Plan(tuple(workloads), 2, 0.25, 0.3, 4.0, False, 2, 2.0, False)
