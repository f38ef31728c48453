# BuildKit's worker with its own store, as a builder outside of Docker has it.  A build without RUN starts no container.

"""A real BuildKit on one node."""

from __future__ import annotations

import os
from pathlib import Path

from lab import parts
from lab.netns import Netns
from lab.network import Port
from lab.process import Failed, Process, run


def program(name: str) -> Path:
    found = Path(os.environ.get("BUILDKIT", "/nowhere"), name)
    if not found.is_file():
        raise RuntimeError(f"{found} is missing: make buildkit")
    return found


class Buildkit:
    """The BuildKit of a node. ``config``: its buildkitd.toml."""

    def __init__(self, port: Port, directory: Path) -> None:
        self._netns: Netns = port.netns
        self._dir = directory
        self._name = f"buildkitd on n{port.index}"
        self.config = directory / "etc/buildkitd.toml"
        self.config.parent.mkdir(parents=True)
        self.process: Process | None = None

    @property
    def _address(self) -> str:
        return f"unix://{self._dir}/buildkitd.sock"

    def start(self, timeout: float = 30) -> None:
        """Start it, and wait until it answers."""
        argv: list[str | Path] = [program("buildkitd"), "--config", self.config, "--root", self._dir / "root"]
        argv += ["--addr", self._address, "--containerd-worker=false", "--oci-worker-snapshotter=native"]
        argv += ["--oci-worker-net=host", "--oci-worker-binary=runc"]
        log_path, env = self._dir / "buildkitd.log", {"PATH": parts.path(parts.runc())}
        self.process = self._netns.start(self._name, argv, log_path=log_path, env=env, private_mounts=True)
        self.process.until(self._answers, timeout=timeout, what=f"{self._name} answers")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill9()

    def build(self, directory: Path, timeout: float = 60) -> str:
        """Build the Dockerfile in ``directory`` without a cache; returns the progress."""
        argv: list[str | Path] = ["sh", "-c", 'exec "$@" 2>&1', "sh", program("buildctl"), "--addr", self._address]
        argv += ["build", "--frontend=dockerfile.v0", "--progress=plain", "--no-cache"]
        argv += [f"--local=context={directory}", f"--local=dockerfile={directory}"]
        argv += [f"--output=type=oci,dest={self._dir / 'built.tar'}"]
        return run(self._netns.inside(argv), timeout=timeout, env={"HOME": str(self._dir)})

    def forget(self) -> None:
        """Remove all that it has pulled."""
        run(self._netns.inside([program("buildctl"), "--addr", self._address, "prune", "--all"]))

    def _answers(self) -> bool:
        try:
            run(self._netns.inside([program("buildctl"), "--addr", self._address, "debug", "workers"]))
        except Failed:
            return False
        return True
