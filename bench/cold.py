# A blob that is not in the page cache has to come from the disk while somebody waits for it.  If the server waits too,
# in its event loop, everybody else's request waits with it.  The loop can't be looked into from outside, but a second
# client can ask for something small at fixed times during the transfer: what its answers take beyond what they take
# of the idle server is how late the loop was.  It asks for the HEAD of a manifest, the cheapest thing that runtimes
# ask for.

"""A transfer from a cold page cache, and how late small requests are answered meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import proc
from bench.content import Content, Piece
from bench.process import Server, ServerError
from bench.rounds import Client, measured
from bench.workload import Workload

_OF = "1 GiB"
_INTERVAL_US = 2000
_BASELINE_SECONDS = 0.3
_LONGEST = 30.0
_EVICTIONS = 20
_EVICTION_PAUSE = 0.1
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class ColdSample:
    """``late_p99`` and ``late_max`` in milliseconds; ``other`` is cores that something else kept busy."""

    server: str
    round: int
    rate: float
    server_cpu: float
    late_p99: float
    late_max: float
    other: float


def evict(piece: Piece) -> bool:
    """Drop a file from the page cache. False where that can't be done, such as on tmpfs."""
    offsets = range(0, piece.size, piece.size // 16)
    fd = os.open(piece.path, os.O_RDONLY)
    try:
        for _ in range(_EVICTIONS):
            # pages that lie in the buffer of a socket can't be dropped until that connection is gone
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if not any(_is_cached(fd, offset) for offset in offsets):
                return True
            time.sleep(_EVICTION_PAUSE)
        return False
    finally:
        os.close(fd)


def _is_cached(fd: int, offset: int) -> bool:
    try:
        os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:  # not known for this file system
        return True
    return True


@dataclass(frozen=True, slots=True)
class ColdSampler:
    """Takes cold samples."""

    client: Client
    probe: Path
    content: Content
    gate: proc.Gate

    def rounds(self, servers: Sequence[Server], count: int) -> Iterator[ColdSample]:
        """``count`` rounds; none where the page cache can't be emptied."""
        for number in range(count):
            for server in random.sample(servers, len(servers)):
                self.gate.wait()
                idle = self._finish(self._start_probe(server, _BASELINE_SECONDS))
                if not evict(self.content.pieces[_OF]):
                    return
                yield self._sample(server, number, idle["p50_us"])

    def _sample(self, server: Server, number: int, idle_us: float) -> ColdSample:
        probe = self._start_probe(server, _LONGEST)
        try:
            workload = Workload("cold", _OF, 1)
            found, usage = measured(server, lambda: self.client.run(server, workload, _LONGEST, requests=1))
            probe.send_signal(signal.SIGTERM)
            late = self._finish(probe)
        finally:
            probe.kill()
            probe.wait()
        if late["errors"] or found["errors"] or found["bad_status"]:
            raise ServerError(f"{server.name}: wrong answers while the page cache was cold")
        return ColdSample(
            server.name,
            number,
            found["bytes"] / _GIB / found["seconds"],
            usage.server,
            max(0.0, late["p99_us"] - idle_us) / 1e3,
            max(0.0, late["max_us"] - idle_us) / 1e3,
            usage.other,
        )

    def _start_probe(self, server: Server, seconds: float) -> subprocess.Popen[str]:
        target = self.content.pieces["manifest"].target
        command = [str(self.probe), str(server.port), str(_INTERVAL_US), f"{seconds:g}", "HEAD", target]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def _finish(self, probe: subprocess.Popen[str]) -> dict[str, float]:
        out, _ = probe.communicate(timeout=_LONGEST)
        found: dict[str, float] = json.loads(out)
        return found
