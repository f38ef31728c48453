"""The health check of the image, as its Dockerfile has it: Docker gives containers the proxy of its client."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from lab.process import HANG

DOCKERFILE = Path(__file__).parents[2] / "docker/Dockerfile"


class Sidecar(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/livez" else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(("path", "status"), [("/livez", 0), ("/readyz", 1)])
def test_the_sidecar_is_asked_without_a_proxy(path: str, status: int) -> None:
    (line,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    _, *words = json.loads(line)
    with HTTPServer(("127.0.0.1", 0), Sidecar) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}{path}"
        env = {**os.environ, "HEALTH_URL": url, "http_proxy": "http://127.0.0.1:1", "no_proxy": ""}
        done = subprocess.run([sys.executable, *words], env=env, capture_output=True, timeout=HANG, check=False)
        server.shutdown()
    assert done.returncode == status, done.stderr
