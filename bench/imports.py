# CPU is that of the processes themselves, so other work on the machine changes it by a third at most; the median of
# several starts is shown.  Compiled files of the product are kept in a directory of their own, as an installation has
# them, because an environment may forbid to write them beside the sources.

"""What the imports cost: CPU of the commands and of the sidecar's start, and memory by library.

python -m bench.imports [--runs 5]
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.ports import free_port

COMMANDS = ("--help", "--version", "status", "leader")
SIDECAR = ("spegel_consul.commands.registry", "spegel_consul.sidecar.lifecycle")
_PATIENCE = 60.0


def seconds_of(*words: str, env: Mapping[str, str]) -> float:
    """CPU seconds of a command, which may fail."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "spegel_consul", *words], capture_output=True, env=env, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seconds_to_ready(env: Mapping[str, str]) -> tuple[float, float]:
    """CPU seconds of a sidecar and its guard until /readyz is answered with 200, and MiB of both a second later."""
    with tempfile.TemporaryDirectory() as name, sidecar(Path(name), env) as (pid, metrics):
        end = time.monotonic() + _PATIENCE
        while not is_ready(metrics):
            if time.monotonic() > end:
                raise TimeoutError("the sidecar is not ready")
            time.sleep(0.02)
        pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        cpu = sum(sum(map(int, _stat(each)[11:15])) for each in pids) / os.sysconf("SC_CLK_TCK")
        time.sleep(1)
        return cpu, sum(_resident(each) for each in pids)


@contextmanager
def sidecar(home: Path, env: Mapping[str, str]) -> Iterator[tuple[int, tuple[str, int]]]:
    """A sidecar with an empty store and without Consul: its guard's pid, and the address of its metrics port."""
    metrics = ("127.0.0.1", free_port())
    (home / "layout/blobs/sha256").mkdir(parents=True)
    (home / "layout/oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (home / "layout/index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    words = [f"--layout-path={home}/layout", f"--data-dir={home}/data", "--registry-addr=127.0.0.1:0"]
    words += ["--router-addr=127.0.0.1:0", f"--metrics-addr=127.0.0.1:{metrics[1]}", "--bootstrap-kind=static"]
    words += ["--static-bootstrap-peers=127.0.0.1:1", "--consul-service=off", "--skip-preflight"]
    argv = [sys.executable, "-m", "spegel_consul", "registry", *words]
    started = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    try:
        yield started.pid, metrics
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait()


def is_ready(metrics: tuple[str, int]) -> bool:
    with suppress(OSError), socket.create_connection(metrics, 1) as asking:
        asking.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return asking.recv(64).startswith(b"HTTP/1.1 200")
    return False


def memory_by_library() -> list[tuple[str, float, int]]:
    """Private MiB and number of modules of each library that the sidecar imports, in a process of their own.

    A library that several others need counts for itself, and a module's own code without that of its imports.
    """
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    nested: list[float] = []
    load: Callable[[object], object] = importlib._bootstrap._load_unlocked  # type: ignore[attr-defined]

    def measured(spec: importlib.machinery.ModuleSpec) -> object:
        before = _private()
        nested.append(0.0)
        try:
            return load(spec)
        finally:
            grown = _private() - before
            own = grown - nested.pop()
            if nested:
                nested[-1] += grown
            root = spec.name.partition(".")[0]
            row = found["Python's own" if root in sys.stdlib_module_names else root]
            row[0] += own
            row[1] += 1

    importlib._bootstrap._load_unlocked = measured  # type: ignore[attr-defined]
    try:
        for each in SIDECAR:
            importlib.import_module(each)
    finally:
        importlib._bootstrap._load_unlocked = load  # type: ignore[attr-defined]
    return sorted(((name, row[0], int(row[1])) for name, row in found.items()), key=lambda row: -row[1])


def _private() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def _resident(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss")) / 1024


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--libraries", action="store_true", help="Print the memory by library of this process.")
    given = parser.parse_args()
    if given.libraries:
        for name, size, count in memory_by_library():
            if size >= 0.2:
                print(f"| {name} | {size:.1f} MiB | {count} |")
        return
    with tempfile.TemporaryDirectory() as compiled:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = compiled
        seconds_to_ready(env)
        for words in COMMANDS:
            runs = [seconds_of(words, env=env) for _ in range(given.runs + 1)][1:]
            print(f"{words}: {statistics.median(runs):.3f} s of CPU")
        starts = [seconds_to_ready(env) for _ in range(given.runs)]
        cpu, size = (statistics.median(values) for values in zip(*starts, strict=True))
        print(f"registry, to /readyz: {cpu:.2f} s of CPU, {size:.1f} MiB with its guard")
        subprocess.run([sys.executable, "-m", "bench.imports", "--libraries"], env=env, check=True)


if __name__ == "__main__":
    main()
