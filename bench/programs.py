# How each of those that are measured is started.  All log as little as they can, keep connections for ever, and
# listen on fixed ports, because the arena is ours alone.

"""Command lines and configuration files of the servers."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.content import Content
from bench.process import Program
from bench.tls import SUITE, Certificate
from bench.tools import HERE, Tools

SPEGEL = "spegel"
SPEGEL_UNVERIFIED = "spegel, unverified"
GO = "go"
GO_VERIFYING = "go, verifying"
GO_SPEGEL = "go+containerd"
NGINX = "nginx"
REGISTRY = "docker-registry"

SOURCE_PORT = 9010
"""Where the nginx listens that has the content which others mirror."""

ANNOUNCER_PORT = 9011
TLS_SOURCE_PORT = 9012
"""The same over TLS."""

_LOOPBACK = "127.0.0.1"

_NGINX = """\
daemon off; master_process off; pid {home}/nginx.pid; error_log stderr error;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; etag off;
  keepalive_timeout 3600s; keepalive_requests 1000000000; sendfile_max_chunk 4m;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  {upstream}
  server {{
    listen {address}{tls}; default_type application/octet-stream;
    location = /v2/ {{ return 200; }}
    {locations}
  }}
}}
"""
_NGINX_FILES = """\
location ~ "^/v2/.+/blobs/sha256:([0-9a-f]{{64}})$" {{
      alias {blobs}/$1; add_header Docker-Content-Digest sha256:$1;
    }}
    location ~ "^/v2/.+/manifests/sha256:([0-9a-f]{{64}})$" {{
      alias {blobs}/$1; add_header Docker-Content-Digest sha256:$1;
      default_type application/vnd.oci.image.manifest.v1+json; types {{ }}
    }}"""
_NGINX_TLS = """ ssl;
    ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.3; ssl_session_tickets off;
    ssl_conf_command Ciphersuites {suite}"""
_NGINX_UPSTREAM = "upstream source {{ server {source}; keepalive 128; keepalive_requests 1000000000; }}"
_NGINX_PROXY = """\
location /v2/ {{
      proxy_pass {scheme}://source; proxy_ssl_protocols TLSv1.3; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffer_size 64k; proxy_buffers 16 64k; proxy_busy_buffers_size 256k; proxy_max_temp_file_size 0;
    }}"""
_REGISTRY = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  maintenance: {{readonly: {{enabled: true}}}}
http: {{addr: "{address}"}}
"""
# only its content store is asked; the rest would look for things on this machine
_CONTAINERD = """\
version = 2
root = "{home}/root"
state = "{home}/state"
disabled_plugins = [
  "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{home}/c.sock"
"""


@dataclass(frozen=True, slots=True)
class Abilities:
    """Which flags of the sidecar exist."""

    flags: frozenset[str]

    @classmethod
    def find(cls) -> Abilities:
        """Read them from its help."""
        command = [sys.executable, "-m", "spegel_consul", "registry", "--help"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        return cls(frozenset(re.findall(r"^\s+(--[a-z-]+)", text, re.MULTILINE)))

    @property
    def can_skip_verification(self) -> bool:
        return "--verify" in self.flags


class Programs:
    """Makes :class:`Program` objects; each gets ports and a directory of its own."""

    def __init__(self, tools: Tools, content: Content, scratch: Path) -> None:
        self._tools = tools
        self._content = content
        self._scratch = scratch
        self._port = 9100
        self._containerd_home = self._home("containerd")
        self._certificate = Certificate.make(self._home("certificate"))
        self.abilities = Abilities.find()

    def own(self) -> list[Program]:
        """Those that have the content as files."""
        found = [self.sidecar(SPEGEL)]
        if self._tools.go_peer is not None:
            found.append(self._go("serve"))
        if self._tools.go_spegel is not None:
            found.append(self._go_spegel())
        if self._tools.nginx is not None:
            found.append(self._nginx(NGINX, self._next_port(), files=True))
        if self._tools.registry is not None:
            found.append(self._registry())
        return found

    def mirrors(self) -> list[Program]:
        """Those that fetch it from the source."""
        found = [self.mirror()]
        if self.abilities.can_skip_verification:
            found.append(self.mirror(SPEGEL_UNVERIFIED, "--verify=off"))
        if self._tools.go_peer is not None:
            found += [self._go("proxy"), self._go("proxy", GO_VERIFYING, "-verify")]
        if self._tools.nginx is not None:
            found.append(self._nginx(NGINX, self._next_port(), files=False))
        return found

    def own_tls(self) -> list[Program]:
        """Those that have the content as files, and serve it over TLS."""
        found = [self.sidecar(SPEGEL, *self._tls_flags)]
        if self._tools.go_peer is not None:
            found.append(self._go("serve", GO, f"-cert={self._certificate.cert}", f"-key={self._certificate.key}"))
        if self._tools.nginx is not None:
            found.append(self._nginx(NGINX, self._next_port(), files=True, tls=True))
        return found

    def mirrors_tls(self) -> list[Program]:
        """Those that fetch it from the source over TLS, and serve it in plain text."""
        found = [self.mirror(SPEGEL, *self._tls_flags)]
        if self.abilities.can_skip_verification:
            found.append(self.mirror(SPEGEL_UNVERIFIED, "--verify=off", *self._tls_flags))
        if self._tools.go_peer is not None:
            found += [self._go("proxy", tls=True), self._go("proxy", GO_VERIFYING, "-verify", tls=True)]
        if self._tools.nginx is not None:
            found.append(self._nginx(NGINX, self._next_port(), files=False, tls=True))
        return found

    @property
    def _tls_flags(self) -> tuple[str, ...]:
        cert, key = self._certificate.cert, self._certificate.key
        files = f"--tls-cert-file={cert}", f"--tls-key-file={key}", f"--tls-ca-file={cert}"
        return ("--peer-tls=require", *files)

    def mirror(self, name: str = SPEGEL, *flags: str) -> Program:
        """A sidecar that has no content and has joined the announcer's ring."""
        verify = ["--verify=on"] if self.abilities.can_skip_verification else []
        # of a flag that is given twice the last one counts
        return self.sidecar(
            name,
            f"--static-bootstrap-peers={_LOOPBACK}:{ANNOUNCER_PORT}",
            *verify,
            *flags,
            layout=self._content.empty_layout,
        )

    def source(self, *, tls: bool = False) -> Program:
        """The nginx that has what others mirror."""
        return self._nginx("source", TLS_SOURCE_PORT if tls else SOURCE_PORT, files=True, tls=tls)

    def announcer(self, *, tls: bool = False) -> Program:
        """Tells the ring that the source is a node's registry."""
        ports = [str(ANNOUNCER_PORT), str(TLS_SOURCE_PORT if tls else SOURCE_PORT)]
        command = [sys.executable, "-m", "bench.announcer", *ports, *self._content.keys]
        # what is waited for is the first answer of a mirror
        return Program("announcer", command, environment={"PYTHONPATH": str(HERE.parent)})

    def containerd(self) -> Program | None:
        """What the Go peer asks that does as Spegel does; None without that peer."""
        if self._tools.go_spegel is None:
            return None
        home = self._containerd_home
        config = home / "config.toml"
        config.write_text(_CONTAINERD.format(home=home))
        return Program("containerd", [str(self._tools.containerd), "--config", str(config), "--log-level", "error"])

    def sidecar(self, name: str, *flags: str, layout: Path | None = None) -> Program:
        """A sidecar alone in its ring, with the content."""
        registry, router, metrics = self._next_port(), self._next_port(), self._next_port()
        home = self._home("sidecar")
        options = {
            "layout-path": layout or self._content.layout,
            "bootstrap-kind": "static",
            "static-bootstrap-peers": f"{_LOOPBACK}:{router}",
            "registry-addr": f"{_LOOPBACK}:{registry}",
            "router-addr": f"{_LOOPBACK}:{router}",
            "metrics-addr": f"{_LOOPBACK}:{metrics}",
            "advertise-addr": _LOOPBACK,
            "node-name": f"bench-{registry}",
            "data-dir": home,
            "log-level": "warning",
        }
        command = [sys.executable, "-m", "spegel_consul", "registry"]
        command += [*(f"--{option}={value}" for option, value in options.items()), *flags]
        return Program(name, command, registry, "/readyz", {"PYTHONPATH": str(HERE.parent)})

    def _go(self, mode: str, name: str = GO, *flags: str, tls: bool = False) -> Program:
        port = self._next_port()
        command = [str(self._tools.go_peer), f"-mode={mode}", f"-address={_LOOPBACK}:{port}"]
        upstream = f"https://{_LOOPBACK}:{TLS_SOURCE_PORT}" if tls else f"http://{_LOOPBACK}:{SOURCE_PORT}"
        command += [f"-blobs={self._content.blobs}", f"-upstream={upstream}", *flags]
        if tls:
            command.append(f"-ca={self._certificate.cert}")
        return Program(name, command, port, "/v2/", tls=any(flag.startswith("-cert") for flag in flags))

    def _go_spegel(self) -> Program:
        port = self._next_port()
        command = [str(self._tools.go_spegel), f"-address={_LOOPBACK}:{port}", f"-home={self._containerd_home}"]
        command.append(f"-manifest={self._content.pieces['manifest'].path}")
        return Program(GO_SPEGEL, command, port, "/v2/")

    def _nginx(self, name: str, port: int, *, files: bool, tls: bool = False) -> Program:
        home = self._home("nginx")
        config = home / "nginx.conf"
        source = f"{_LOOPBACK}:{TLS_SOURCE_PORT if tls else SOURCE_PORT}"
        config.write_text(
            _NGINX.format(
                home=home,
                address=f"{_LOOPBACK}:{port}",
                tls=_NGINX_TLS.format(cert=self._certificate.cert, key=self._certificate.key, suite=SUITE)
                if files and tls
                else "",
                upstream="" if files else _NGINX_UPSTREAM.format(source=source),
                locations=_NGINX_FILES.format(blobs=self._content.blobs)
                if files
                else _NGINX_PROXY.format(scheme="https" if tls else "http"),
            )
        )
        # it keeps root's rights, which is how it may read the content of root's cache directory
        command = [str(self._tools.nginx), "-p", str(home), "-c", str(config), "-g", "user root;"]
        return Program(name, command, port, "/v2/", tls=files and tls)

    def _registry(self) -> Program:
        port = self._next_port()
        config = self._home("registry") / "config.yml"
        config.write_text(_REGISTRY.format(root=self._content.registry, address=f"{_LOOPBACK}:{port}"))
        return Program(REGISTRY, [str(self._tools.registry), "serve", str(config)], port, "/v2/")

    def _next_port(self) -> int:
        self._port += 1
        return self._port

    def _home(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._scratch))
