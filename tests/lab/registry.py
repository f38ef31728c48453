"""The registry that images come from in the first place: Docker's own, with an access log."""

from __future__ import annotations

import re
from pathlib import Path

from lab import parts
from lab.image import Image
from lab.network import Port
from lab.process import Failed, Process

PORT = 5050
_CONFIG = """
version: 0.1
log:
  accesslog: {{disabled: false}}
  level: warn
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http:
  addr: {ip}:{port}
"""
_TLS = """  tls: {{certificate: {certificate}, key: {key}}}
"""
_ACCESS = re.compile(
    r'^(?P<client>\S+) - \S+ \[[^]]*\] "(?P<request>\S+ \S+) HTTP/[\d.]+" (?P<status>\d{3}) '
    r'(?:\d+ "[^"\n]*" "(?P<agent>[^"\n]*)")?',
    re.M,
)


class Registry:
    """The upstream, on one of the nodes. ``tls``: files of a certificate and its key."""

    def __init__(
        self, port: Port, directory: Path, tcp_port: int = PORT, *, tls: tuple[Path, Path] | None = None
    ) -> None:
        self.netns = port.netns
        self.host = f"{port.ip}:{tcp_port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        self.process: Process | None = None
        self._name = f"registry on n{port.index}"
        self._log_path = directory / "registry.log"
        self._seen = 0
        (directory / "storage").mkdir(parents=True, exist_ok=True)
        self._config = directory / "config.yml"
        config = _CONFIG.format(root=directory / "storage", ip=port.ip, port=tcp_port)
        if tls is not None:
            config += _TLS.format(certificate=tls[0], key=tls[1])
        self._config.write_text(config)
        self._address = (port.ip, tcp_port)

    def start(self) -> None:
        """Start it; ``await_ready`` waits for it. A restarted one keeps its images."""
        argv: list[str | Path] = [parts.system("docker-registry"), "serve", self._config]
        self.process = self.netns.start(self._name, argv, log_path=self._log_path)

    def running(self) -> Process:
        if self.process is None:
            raise Failed(f"{self._name} was not started")
        return self.process

    def await_ready(self, timeout: float = 20) -> None:
        self.running().until(self.answers_requests, timeout=timeout, what=f"{self._name} answers")
        self.forget()

    def push(self, image: Image, timeout: float = 60, *, forget: bool = True) -> None:
        """Store all platforms of ``image`` under its repository and tag. ``forget`` what was asked."""
        argv = [parts.system("skopeo"), "--insecure-policy", "copy", "--quiet", "--all", "--dest-tls-verify=false"]
        source = f"oci:{image.layout}:{image.tag}"
        self.netns.run(*argv, source, f"docker://{self.host}/{image.repository}:{image.tag}", timeout=timeout)
        if forget:
            self.forget()

    def requests(self) -> list[str]:
        """What was asked since it started or ``forget`` was called, as ``GET /v2/library/app/manifests/v1?ns=…``."""
        return [match["request"] for match in self._accesses()]

    def answers(self) -> list[tuple[str, int]]:
        """Like ``requests``, each with the status of its answer."""
        return [(match["request"], int(match["status"])) for match in self._accesses()]

    def user_agents(self) -> set[str]:
        """The User-Agent of all clients since it started or ``forget`` was called."""
        return {match["agent"] for match in self._accesses() if match["agent"]}

    def blob_requests(self) -> list[tuple[str, str]]:
        """The address of the client and the digest, for each GET of a blob."""
        found = ((match["client"].partition(":")[0], match["request"]) for match in self._accesses())
        return [
            (client, request.partition("?")[0].rpartition("/")[2])
            for client, request in found
            if request.startswith("GET ") and "/blobs/" in request
        ]

    def forget(self) -> None:
        self._seen = len(self._text())

    def _accesses(self) -> list[re.Match[str]]:
        return list(_ACCESS.finditer(self._text()[self._seen :]))

    def _text(self) -> str:
        return self._log_path.read_text(errors="replace")

    def answers_requests(self) -> bool:
        """Whether it is up."""
        try:
            # with TLS it answers 400 to those who come without
            return self.netns.request("GET", *self._address, "/v2/").status in (200, 400)
        except OSError:
            return False
