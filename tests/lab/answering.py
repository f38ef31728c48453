"""Servers that give one answer to all requests, in the place of a sidecar, of a proxy or of a Docker."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import ThreadingUnixStreamServer


def _handler(paths: list[str], body: bytes, status: int = 200) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


class Server(HTTPServer):
    """A sidecar, or a proxy: it keeps the paths and answers 200 with ``body``."""

    def __init__(self, body: bytes = b"ok\n", status: int = 200) -> None:
        self.paths: list[str] = []
        super().__init__(("127.0.0.1", 0), _handler(self.paths, body, status))
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Docker(ThreadingUnixStreamServer):
    """Answers ``GET /info`` as a Docker of some version does."""

    daemon_threads = True

    def __init__(self, sock: Path, version: str = "28.5.2", image_store: bool = True, **more: object) -> None:
        driver = ["driver-type", "io.containerd.snapshotter.v1"] if image_store else ["Backing Filesystem", "extfs"]
        info = {"ServerVersion": version, "DriverStatus": [driver], "DockerRootDir": "/x", **more}
        super().__init__(str(sock), _handler([], json.dumps(info).encode()))
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
