"""The product under test, as a process of its own on a node."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.netns import Netns, Response
from lab.network import Port
from lab.process import is_running, until

REGISTRY_PORT = 5000
ROUTER_PORT = 5001
METRICS_PORT = 9090

Flag = str | int | Path | bool | Sequence[str] | None


class Sidecar:
    """``spegel-consul registry`` with ``flags`` (``log_level="debug"`` is ``--log-level debug``) and ``env``.

    ``mounts``: directories where it, and nobody else, sees a new tmpfs with these options.
    """

    def __init__(
        self,
        port: Port,
        directory: Path,
        flags: Mapping[str, Flag],
        env: Mapping[str, str],
        mounts: Mapping[Path, str] | None = None,
    ) -> None:
        self.ip = port.ip
        self.netns: Netns = port.netns
        self.url = f"http://{self.ip}:{REGISTRY_PORT}"
        directory.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "spegel_consul", "registry", *arguments(flags)]
        for path, options in (mounts or {}).items():
            mount = f"mount -t tmpfs -o {shlex.quote(options)} tmpfs {shlex.quote(str(path))}"
            argv = ["sh", "-c", f'{mount} && exec "$@"', "sh", *argv]
        self.process = self.netns.start(
            f"sidecar on n{port.index}",
            argv,
            log_path=directory / "sidecar.log",
            env={"PYTHONUNBUFFERED": "1", **env},
            private_mounts=bool(mounts),
        )
        self.stopped = False

    def await_ready(self, timeout: float = 30) -> None:
        """Wait until it says that it is ready, at the address that its peers use."""
        self.process.until(self.is_ready, timeout=timeout, what=f"{self.process} is ready")

    def is_ready(self) -> bool:
        try:
            return self.get("/readyz", timeout=2).status == 200
        except OSError:
            return False

    def get(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, timeout: float = 10
    ) -> Response:
        """Ask its registry, from its own node."""
        return self.netns.request(method, self.ip, REGISTRY_PORT, path, headers=headers, timeout=timeout)

    def metrics(self) -> str:
        return self.netns.request("GET", self.ip, METRICS_PORT, "/metrics").body.decode()

    @property
    def pid(self) -> int:
        """Of the sidecar proper; that of its process is its guard's, unless it has none."""
        started = self.process.pid
        children = Path(f"/proc/{started}/task/{started}/children").read_text().split()
        return int(children[0]) if children else started

    def pause(self) -> None:
        """SIGSTOP, as if it hung; its guard, if it has one, does not bear that for long."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def log(self) -> str:
        return self.process.log()

    def stop(self, timeout: float = 15) -> int:
        """End it as Nomad and Docker do; returns the exit status."""
        self.stopped = True
        return self.process.stop(timeout)

    def kill9(self) -> None:
        """SIGKILL for the process that was started, which is the end of the sidecar, and of its ports, too."""
        self.stopped = True
        if self.process.alive:
            pid = self.pid
            self.process.kill9()
            until(lambda: not is_running(pid), timeout=5, what="the sidecar does not outlive its guard")


def arguments(flags: Mapping[str, Flag]) -> list[str]:
    """Flags of a command line: True is a bare flag, a list repeats it, None and False leave it out."""
    argv: list[str] = []
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            argv.append(flag)
        elif isinstance(value, str | int | Path):
            argv += [flag, str(value)]
        else:
            for item in value:
                argv += [flag, item]
    return argv
