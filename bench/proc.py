"""What /proc says of processes and of the machine."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_QUIET = 0.15
_LOOK = 0.08


def parse_cpu(stat: str) -> float:
    """CPU seconds in a /proc/PID/stat, user and system, with those of children that have ended."""
    # the command's name is in parentheses and may contain anything
    fields = stat.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICK


def parse_rss(status: str) -> int:
    """Resident bytes in a /proc/PID/status; 0 for a process that is ending."""
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return 0


def parse_busy(stat: str) -> tuple[float, float]:
    """Busy and all CPU seconds in /proc/stat; waiting for a disk and stolen time count as neither."""
    user, nice, system, idle, iowait, irq, softirq = map(int, stat.split("\n", 1)[0].split()[1:8])
    busy = user + nice + system + irq + softirq
    return busy / _TICK, (busy + idle + iowait) / _TICK


def tree(pid: int) -> list[int]:
    """``pid`` and its living descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _read(task).split():
            found += tree(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process and its descendants."""
    return sum(parse_cpu(stat) for each in tree(pid) if (stat := _read(Path(f"/proc/{each}/stat"))))


def rss(pid: int) -> int:
    """Resident bytes of a process and its descendants."""
    return sum(parse_rss(_read(Path(f"/proc/{each}/status"))) for each in tree(pid))


def busy() -> tuple[float, float]:
    """Busy and all CPU seconds of the machine."""
    return parse_busy(Path("/proc/stat").read_text())


@dataclass(slots=True)
class Gate:
    """Waits until the machine is quiet: up to ``patience`` seconds each time, up to ``budget`` seconds in all."""

    patience: float
    budget: float

    def wait(self) -> bool:
        """False if it was not quiet at the end of our patience."""
        began = time.monotonic()
        try:
            return self._wait(began + min(self.patience, self.budget))
        finally:
            self.budget = max(0.0, self.budget - (time.monotonic() - began))

    def _wait(self, until: float) -> bool:
        while time.monotonic() < until:
            busy_before, all_before = busy()
            time.sleep(_LOOK)
            busy_after, all_after = busy()
            if busy_after - busy_before <= _QUIET * max(all_after - all_before, _LOOK):
                return True
        return False


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
