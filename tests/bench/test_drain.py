"""The client that asks: what it counts is what the figures are made of."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from lab.process import HANG

from bench import lifecycle, tools
from bench import process as process_
from bench.rounds import Client

SIZE = 300_000


class Handler(BaseHTTPRequestHandler):
    """/good, /missing (404), /short (less than promised), ranges of /good, and /whole, which has none."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        status, start = (404 if self.path == "/missing" else 200), 0
        if (asked := self.headers.get("range")) and self.path != "/whole":
            status, start = 206, int(asked.removeprefix("bytes=").removesuffix("-"))
        self.send_response(status)
        self.send_header("Content-Length", str(SIZE - start))
        self.end_headers()
        if self.command == "GET":
            try:
                self.wfile.write(b"x" * (SIZE // 2 if self.path == "/short" else SIZE - start))
            except OSError:
                self.close_connection = True
        if self.path == "/short":
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A client that leaves before it has read all resets the connection; that is no error here."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@pytest.fixture
def port() -> Iterator[int]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module")
def drain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tools.built(tmp_path_factory.mktemp("cache"), tools.HERE / "client/drain.c", ["cc"])


def run(drain: Path, port: int, *arguments: object) -> dict[str, float]:
    done = subprocess.run([drain, str(port), *map(str, arguments)], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


def test_counts_answers_and_their_bytes(drain: Path, port: int) -> None:
    found = run(drain, port, 2, 10, "GET", "/good", 6)
    assert (found["requests"], found["bytes"], found["errors"], found["bad_status"]) == (6, 6 * SIZE, 0, 0)


def test_head_has_no_body(drain: Path, port: int) -> None:
    found = run(drain, port, 1, 10, "HEAD", "/good", 3)
    assert (found["requests"], found["bytes"], found["errors"]) == (3, 0, 0)


def test_says_when_answers_are_wrong(drain: Path, port: int) -> None:
    assert run(drain, port, 1, 10, "GET", "/missing", 2)["bad_status"] == 2
    assert run(drain, port, 1, 0.2, "GET", "/short")["errors"] > 0


def test_ranges_are_read_up_to_the_step(drain: Path, port: int) -> None:
    found = run(drain, port, 1, 10, "GET", "/good", 4, 100_000, SIZE)
    assert (found["requests"], found["bytes"], found["errors"], found["bad_status"]) == (4, 400_000, 0, 0)


def test_all_is_an_answer_to_the_first_range_only(drain: Path, port: int) -> None:
    assert run(drain, port, 1, 10, "GET", "/whole", 1, 100_000, SIZE)["bad_status"] == 0
    assert run(drain, port, 1, 10, "GET", "/whole", 3, 100_000, SIZE)["bad_status"] == 2


def test_ends_in_time(drain: Path, port: int) -> None:
    # without a number of requests it goes on for ever
    assert run(drain, port, 4, 0.2, "GET", "/good")["seconds"] >= 0.2


def test_nobody_there(drain: Path) -> None:
    done = subprocess.run([drain, "1", "1", "1", "GET", "/"], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 2
    assert "connect" in done.stderr


@pytest.mark.parametrize("path", ["/missing", "/short"])
def test_memory_is_that_of_transfers_that_came_about(drain: Path, port: int, path: str, tmp_path: Path) -> None:
    """A server that sends nothing would seem to need least."""
    targets = {"manifest": "/good", "1 MiB": "/good", "1 GiB": "/good"}
    with subprocess.Popen(["sleep", str(HANG)]) as process:
        program = process_.Program("it", (), port)
        server = process_.Server(program, process, tmp_path / "log")

        def look() -> lifecycle.Memory:
            pieces = {name: SimpleNamespace(target=target) for name, target in targets.items()}
            return lifecycle.memory(server, Client(drain, SimpleNamespace(pieces=pieces)), 0.5)  # type: ignore[arg-type]

        try:
            assert look().transferred > 0
            targets["1 GiB"] = path
            with pytest.raises(process_.ServerError, match="the transfers failed"):
                look()
        finally:
            process.kill()
