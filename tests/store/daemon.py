# A containerd from .ci/install-real-parts, and the registry that it pulls from.  Without the real parts the tests
# fail: a store that was only tried on an imitation was not tried.

from __future__ import annotations

import http.server
import io
import json
import os
import socket
import subprocess
import tarfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conformance.store import SampleImage
from lab.process import HANG, until

# containerd syncs each blob to its disk, which is what most of a test would wait for
MEMORY = Path("/dev/shm")
SCRATCH = MEMORY if os.access(MEMORY, os.W_OK) else None

VERSIONS = {"1.6": "ctrd16", "1.7": "ctrd17", "2.1": "ctrd21"}


def real_parts() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spegel-consul-ci"
    return Path(os.environ.get("SPEGEL_REAL_PARTS") or default)


@dataclass
class Containerd:
    """A containerd process with private root, state and socket."""

    version: str
    home: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def socket(self) -> Path:
        return self.home / "c.sock"

    @property
    def content(self) -> Path:
        return self.home / "root" / "io.containerd.content.v1.content"

    def binary(self, name: str) -> str:
        path = real_parts() / VERSIONS[self.version] / "usr" / "bin" / name
        if not path.exists():
            pytest.fail(f"{path} is missing: run .ci/install-real-parts", pytrace=False)
        return str(path)

    def start(self) -> None:
        config = self.home / "config.toml"
        config.write_text(
            f"version = {3 if self.version.startswith('2') else 2}\n"
            f'root = "{self.home}/root"\nstate = "{self.home}/state"\n'
            'disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.grpc.v1.cri",'
            ' "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]\n'
            f'[grpc]\n  address = "{self.socket}"\n'
        )
        command = [self.binary("containerd"), "-c", str(config)]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        until(self._listens, timeout=HANG, what=f"containerd {self.version} listens")

    def _listens(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"containerd {self.version} did not start:\n{(self.home / 'log').read_text()[-2000:]}")
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def kill(self) -> None:
        """As a crash ends it."""
        if self.process is not None:
            self.process.kill()

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(HANG)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def ctr(self, namespace: str, *arguments: str, data: bytes | None = None) -> str:
        command = [self.binary("ctr"), "-a", str(self.socket), "-n", namespace, *arguments]
        done = subprocess.run(command, input=data, capture_output=True, timeout=HANG, check=False)
        if done.returncode:
            pytest.fail(f"{' '.join(arguments)}: {done.stderr.decode()}")
        return done.stdout.decode()

    def load(self, namespace: str, *images: SampleImage) -> None:
        self.ctr(namespace, "images", "import", "--no-unpack", "-", data=layout_tar(*images))


def layout_tar(*images: SampleImage) -> bytes:
    """An OCI image layout in a tar archive, as `ctr images import` takes it."""
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": layout_index(*images)}
    for image in images:
        files |= {f"blobs/{digest.replace(':', '/')}": body for digest, body in image.blobs.items()}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, body in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    return out.getvalue()


def layout_index(*images: SampleImage) -> bytes:
    entries = [
        {
            "mediaType": image.media_types[image.root],
            "digest": image.root,
            "size": len(image.blobs[image.root]),
            "annotations": {
                "io.containerd.image.name": image.name,
                "org.opencontainers.image.ref.name": image.name.rpartition(":")[2],
            },
        }
        for image in images
    ]
    return json.dumps({"schemaVersion": 2, "manifests": entries}).encode()


class Upstream(http.server.ThreadingHTTPServer):
    """A registry that serves one image under any name, at ``address``; layers only once ``gate`` is set.

    ``pauses``: after how many bytes of a layer it waits for what.
    """

    daemon_threads = True

    def __init__(self, image: SampleImage) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.image = image
        self.gate = threading.Event()
        self.gate.set()
        self.pauses: dict[str, tuple[int, threading.Event]] = {}
        self.address = f"127.0.0.1:{self.server_port}"

    def pause(self, digest: str, after: int) -> threading.Event:
        """Send ``after`` bytes of a layer, and the rest once the event is set."""
        self.pauses[digest] = (after, threading.Event())
        return self.pauses[digest][1]


class _Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        image = self.server.image
        reference = self.path.partition("?")[0].rpartition("/")[2]
        digest = reference if ":" in reference else image.root
        body = image.blobs.get(digest)  # type: ignore[call-overload]
        if digest in image.layers:
            self.server.gate.wait(20)
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Length", str(len(body or b"")))
        if body is not None:
            self.send_header("Content-Type", image.media_types[digest])  # type: ignore[index]
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()
        if self.command == "GET" and body is not None:
            after = 0
            if reference in self.server.pauses:
                after, event = self.server.pauses[reference]
                self.wfile.write(body[:after])
                event.wait(20)
            self.wfile.write(body[after:])

    def log_message(self, *arguments: object) -> None:
        pass
