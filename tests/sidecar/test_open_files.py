"""A sidecar with few open files: other machines can't take those of the node's own runtime, at any port."""

from __future__ import annotations

import http.client
import json
import re
import resource
import socket
import subprocess
import time
from contextlib import ExitStack, closing
from pathlib import Path

from lab.image import MIB, build
from lab.process import HANG, ending, until

from tests.sidecar.processes import has_started, sidecar, with_an_empty_layout

FILES = 256


def with_few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))


def test_peers_that_read_slowly_leave_files_for_the_own_runtime(tmp_path: Path) -> None:
    app = build(tmp_path / "app", "docker.io/library/app:v1", [32 * MIB], 1)  # more than a connection's buffers take
    path = f"/v2/library/app/blobs/{app.amd64.layers[1]}?ns=docker.io"
    argv = sidecar(tmp_path, f"--layout-path={app.layout}", "--hang-timeout=0")
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(argv, stdout=log, stderr=log, preexec_fn=with_few_files)
    with ending(started) as process, ExitStack() as peers:
        until(has_started(process, tmp_path), timeout=HANG, what="it has started")
        (port,) = map(int, re.findall(r'"registry": "http://127.0.0.1:(\d+)"', (tmp_path / "log").read_text()))
        for number in range(FILES):
            peer = peers.enter_context(socket.socket())
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
            peer.bind((f"127.0.1.{number % 50 + 1}", 0))
            peer.connect(("127.0.0.1", port))
            peer.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Spegel-Mirrored: true\r\n\r\n".encode())

        def open_files() -> int:
            return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))

        reached = 0

        def settled() -> bool:
            nonlocal reached
            before, reached = reached, open_files()
            time.sleep(0.5)
            return reached == before

        until(settled, timeout=HANG, what="the peers have what they get")
        assert reached < FILES - 32
        for target, size in [("/readyz", 0), ("/v2/", 0), (path, 32 * MIB)]:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1)) as own:
                own.request("GET", target)
                with own.getresponse() as answer:
                    assert answer.status in (200, 503) if target == "/readyz" else answer.status == 200
                    assert len(answer.read()) >= size
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert events.count("connection refused: too many stand") == 1
    assert "no connection can be accepted now" not in events


def test_strangers_at_the_port_of_the_ring_leave_files_for_the_own_runtime(tmp_path: Path) -> None:
    with_an_empty_layout(tmp_path, "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        router = free.getsockname()[1]
    argv = sidecar(tmp_path, f"--layout-path={tmp_path}", "--hang-timeout=0", f"--router-addr=127.0.0.1:{router}")
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(argv, stdout=log, stderr=log, preexec_fn=with_few_files)
    with ending(started) as process, ExitStack() as strangers:
        until(has_started(process, tmp_path), timeout=HANG, what="it has started")
        (port,) = map(int, re.findall(r'"registry": "http://127.0.0.1:(\d+)"', (tmp_path / "log").read_text()))
        for number in range(FILES):
            stranger = strangers.enter_context(socket.socket())
            stranger.bind((f"127.0.1.{number % 200 + 1}", 0))
            stranger.connect(("127.0.0.1", router))
        for _ in range(20):
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=HANG)) as own:
                own.request("GET", "/v2/")
                assert own.getresponse().status == 200
            assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < FILES - 32
    assert "no connection can be accepted now" not in (tmp_path / "log").read_text()
