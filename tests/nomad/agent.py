# Nomad shares its Docker's mounts, as on a machine: both must see the same secrets directory, which Nomad mounts.
# Its binary is named by the environment: there is no package of it to install, so CI does not run these tests.

"""A node with Docker and a real Nomad, and the documentation's commands on it."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from lab import parts
from lab.cluster import Node
from lab.process import Failed, Process

from spegel_consul import __version__

BINARY = Path(os.environ.get("NOMAD", ""))
IMAGE = "ghcr.io/spegel-consul/spegel-consul"
"""What the jobs call the product's image, before its tag."""
PAUSE = "spegel-lab/pause:1"
"""The container that holds the network of a job in a bridge; Nomad's own is in a registry."""


def version() -> tuple[int, ...]:
    """Nomad's own, such as (1, 6, 5). Raises RuntimeError."""
    if not BINARY.is_file():
        raise RuntimeError("NOMAD names no file: make nomad NOMAD=/path/to/nomad")
    said = subprocess.run([BINARY, "version"], capture_output=True, text=True, timeout=20, check=True).stdout
    found = re.match(r"Nomad v(\d+)\.(\d+)\.(\d+)", said)
    if found is None:
        raise RuntimeError(f"{BINARY} is no Nomad: {said[:100]}")
    return tuple(map(int, found.groups()))


def has_locks() -> bool:
    """Whether it has locks on variables."""
    return version() >= (1, 7)


_HCL = """
name       = "{name}"
data_dir   = "{data}"
bind_addr  = "{ip}"
addresses {{ http = "0.0.0.0" }}
advertise {{ http = "{ip}" }}
disable_update_check = true
server {{
  enabled          = {is_server}
  bootstrap_expect = 1
}}
client {{
  enabled           = true
  servers           = ["{server}"]
  network_interface = "eth0"
  options = {{
    "user.denylist"        = "Administrator"
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }}
  cni_path = "/usr/lib/cni"
  host_network "loopback" {{ cidr = "127.0.0.1/8" }}
  artifact {{ disable_filesystem_isolation = true }}
  host_volume "spegel-containerd" {{ path = "/run/docker/containerd" }}
  host_volume "spegel-content" {{
    path      = "/var/lib/docker/containerd/daemon/io.containerd.content.v1.content"
    read_only = true
  }}
  host_volume "spegel-data" {{ path = "/var/lib/spegel" }}
}}
acl {{ enabled = {acl} }}
plugin "docker" {{
  config {{
    volumes {{ enabled = true }}
    gc {{ image = false }}
    infra_image = "{pause}"
  }}
}}
plugin "raw_exec" {{
  config {{ enabled = true }}
}}
"""


class Machine:
    """``node`` with Docker where an installation has it, and a Nomad client, on the first node also the server."""

    def __init__(self, node: Node, server: Node, *, acl: bool = False) -> None:
        self.node = node
        self.docker = node.add_docker("28", installed=True)
        self.env: dict[str, str] = {
            # in place of the pages' example
            "NOMAD_VAR_image": f"{IMAGE}:{__version__}",
            # a machine of tests may not let root raise it
            "NOMAD_VAR_nofile": "{}:{}".format(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        }
        """Of the commands that are run here."""
        self._dir = node.dir / "nomad"
        (self._dir / "bin").mkdir(parents=True)
        (self._dir / "bin/nomad").symlink_to(BINARY)
        (self._dir / "agent.hcl").write_text(
            _HCL.format(
                name=node.name,
                data=self._dir / "data",
                ip=node.ip,
                server=server.ip,
                is_server=str(node is server).lower(),
                acl=str(acl).lower(),
                pause=PAUSE,
            )
        )
        self.nomad: Process | None = None

    def start(self) -> None:
        """Start Nomad; Docker runs already."""
        (self._dir.parent / "dk/data/containerd/daemon/io.containerd.content.v1.content").mkdir(exist_ok=True)
        argv = self.docker.enter([BINARY, "agent", f"-config={self._dir / 'agent.hcl'}"])
        env = {"PATH": self._path()}
        self.nomad = Process(f"nomad {self.node.name}", argv, log_path=self._dir / "nomad.log", env=env)

    def shell(self, command: str, where: Path = Path("/"), timeout: float = 60, status: int = 0) -> str:
        """A line of the documentation, in a directory; returns its output. Raises Failed for another exit status."""
        if "10.0.0.7:23456" in command:
            (metrics,) = self.node.consul.instances("spegel-metrics")
            command = command.replace("23456", str(metrics["Service"]["Port"]))
        script = f"cd {shlex.quote(str(where))} && {command.replace('10.0.0.7', self.node.ip)}"
        argv = self.docker.enter(["bash", "-o", "pipefail", "-c", script])
        env = {**os.environ, **self.env, "PATH": self._path(), "CONSUL_HTTP_ADDR": "127.0.0.1:8500"}
        try:
            done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as late:
            said = b"".join(filter(None, (late.stdout, late.stderr))).decode(errors="replace")
            raise Failed(f"{command}\nno end after {timeout:g} s\n{said}") from None
        if done.returncode != status:
            raise Failed(f"{command}\nexit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def api(self, path: str) -> Any:
        """What Nomad's API says here."""
        headers = {"X-Nomad-Token": self.env["NOMAD_TOKEN"]} if "NOMAD_TOKEN" in self.env else {}
        answer = self.node.netns.request("GET", "127.0.0.1", 4646, path, headers=headers)
        if answer.status != 200:
            raise Failed(f"nomad {path}: {answer.status} {answer.body.decode(errors='replace')}")
        return json.loads(answer.body)

    def clients(self) -> dict[str, str]:
        """The ids of the clients that are ready and have Docker, by name."""
        try:
            nodes = self.api("/v1/nodes")
        except (OSError, Failed):
            return {}
        return {
            each["Name"]: each["ID"]
            for each in nodes
            if each["Status"] == "ready" and each["Drivers"].get("docker", {}).get("Healthy")
        }

    def running(self, job: str) -> dict[str, dict[str, Any]]:
        """The allocations of a job that run, by the name of their node."""
        found = self.api(f"/v1/job/{job}/allocations")
        return {each["NodeName"]: each for each in found if each["ClientStatus"] == "running"}

    def kill(self) -> None:
        """End Nomad. What it started ends with the node."""
        if self.nomad is not None:
            self.nomad.kill9()

    def _path(self) -> str:
        return parts.path(self._dir / "bin/nomad", parts.consul(), Path(sys.executable), parts.docker("28"))
