"""``ConsulAgent``: a real ``consul agent -dev`` on free ports of 127.0.0.1, stopped by its process id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import trio
from lab.ports import free_ports
from lab.process import HANG, until

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import ConsulError
from spegel_consul.consul.api.consul_settings import ConsulSettings

_PORTS = ("http", "dns", "server", "serf_lan", "serf_wan")


def consul_binary() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parts = Path(os.environ.get("SPEGEL_REAL_PARTS") or cache / "spegel-consul-ci")
    binary = parts / "consul/usr/bin/consul"
    assert binary.exists(), f"{binary} is missing: run .ci/install-real-parts"
    return binary


class ConsulAgent:
    """Use as ``with``. ``config`` is merged over the ports; the same ports are used again after a restart.

    ``durable``: it remembers keys and sessions over a restart, as servers do. ``arguments`` are added to its own.
    """

    def __init__(
        self,
        directory: Path,
        config: dict | None = None,
        *,
        tls: bool = False,
        durable: bool = False,
        arguments: Sequence[str] = (),
    ) -> None:
        self._arguments = arguments
        self._binary = consul_binary()
        self._kind = ["-dev"]
        if durable:
            self._kind = ["-server", "-bootstrap-expect=1", f"-data-dir={directory / 'consul-data'}"]
        self._directory = directory
        self.ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        ports = {name: port for name, port in self.ports.items() if not (tls and name == "http")}
        self.config = {
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "node_name": "n1",
            "ports": {**ports, "grpc": -1, **({"http": -1, "https": self.ports["http"]} if tls else {})},
            **(config or {}),
        }
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> ConsulAgent:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports['http']}"

    def settings(self, **changes: str) -> ConsulSettings:
        return ConsulSettings.from_env({"CONSUL_HTTP_ADDR": self.address, **changes})

    def start(self) -> None:
        path = self._directory / "agent.json"
        path.write_text(json.dumps(self.config))
        with (self._directory / "agent.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "agent", *self._kind, f"-config-file={path}", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env={"PATH": os.environ["PATH"], "HOME": str(self._directory), "GOMAXPROCS": "2"},
            )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(HANG)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    async def ready(self, client: ConsulClient) -> None:
        """Return when the agent has a leader and its node is in the catalog, which sessions need."""
        with trio.fail_after(HANG):
            while True:
                try:
                    session = await client.session_create("probe", ttl=10, lock_delay=0)
                    return await client.session_destroy(session)
                except ConsulError:
                    assert self._process is not None
                    assert self._process.poll() is None, (self._directory / "agent.log").read_text()[-2000:]
                    await trio.sleep(0.02)

    def command(self, *args: str, token: str | None = None) -> str:
        """Standard output of the ``consul`` command."""
        env = {"CONSUL_HTTP_ADDR": self.address, **({"CONSUL_HTTP_TOKEN": token} if token else {})}
        done = subprocess.run(
            [self._binary, *args], env=env, capture_output=True, text=True, timeout=HANG, cwd=self._directory
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, path: str) -> str:
        """The answer to an API request."""
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=HANG) as answer:
            return answer.read().decode()

    def wait_for_acl(self) -> str:
        """Bootstrap the ACL system; the management token."""
        made: list[str] = []

        def bootstrapped() -> bool:
            with suppress(AssertionError):
                made.append(json.loads(self.command("acl", "bootstrap", "-format=json"))["SecretID"])
            return bool(made)

        until(bootstrapped, timeout=HANG, what="the ACL system is there")
        return made[0]
