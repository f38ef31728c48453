"""What the commands make of a sidecar that hangs, drips, is older, or is something else: one line and an exit code."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner, Result

from spegel_consul.cli import cli
from spegel_consul.commands import events, sidecar_client

Serve = Callable[[socket.socket, bytes], None]


@contextmanager
def server(serve: Serve) -> Iterator[str]:
    """Something that listens, and answers each request with ``serve(connection, request)``."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def accept() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                serve(connection, connection.recv(65536))
            except OSError:
                pass

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def whole(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(body), body)


def hangs(connection: socket.socket, request: bytes) -> None:
    connection.recv(1)  # until the client goes


def drips(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def garbage(connection: socket.socket, request: bytes) -> None:
    connection.sendall(whole(b"<html>hello</html>"))


def older(connection: socket.socket, request: bytes) -> None:
    connection.sendall(whole(b'{"node": {"name": "n1"}, "ready": true, "pieces": []}'))


def lacks(connection: socket.socket, request: bytes) -> None:
    connection.sendall(whole(b"<html>not found</html>", 404))


def run(node: str, *words: str) -> Result:
    return CliRunner().invoke(cli, [*words, "--node", node])


COMMANDS = [
    ["status"],
    ["peers"],
    ["lookup", "app:v1"],
    ["pull", "app:v1"],
    ["preheat", "app:v1"],
    ["events", "--no-follow"],
]
STRANGERS = [
    (hangs, "did not answer in 0.4 s"),
    (drips, "did not answer in 0.4 s"),
    (garbage, "is no spegel-consul"),
    (lacks, "is no spegel-consul, or one without this command (status 404)"),
]


# a pull may take as long as it does: only silence ends it
CASES = [
    pytest.param(command, serve, reason, id=f"{command[0]}-{serve.__name__}")
    for command in COMMANDS
    for serve, reason in STRANGERS
    if serve is not drips or command[0] not in ("pull", "preheat")
]


@pytest.mark.parametrize(("command", "serve", "reason"), CASES)
def test_each_is_one_line_and_exit_3(
    command: list[str], serve: Serve, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if serve in (hangs, drips):
        monkeypatch.setattr(sidecar_client, "TIMEOUT", 0.4)
        monkeypatch.setattr(
            sidecar_client.get, "__kwdefaults__", {**(sidecar_client.get.__kwdefaults__ or {}), "timeout": 0.4}
        )
        monkeypatch.setattr(sidecar_client, "_LINE_TIMEOUT", 0.4)
    with server(serve) as node:
        done = run(node, *command)
    assert done.exit_code == sidecar_client.EXIT_UNREACHABLE, done.output
    assert reason in done.output
    assert len(done.output.splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_an_older_sidecar_is_told_from_a_broken_one(command: list[str]) -> None:
    with server(older) as node:
        done = run(node, *command)
    assert done.exit_code == sidecar_client.EXIT_UNREACHABLE, done.output
    assert "lacks fields that version" in done.output
    assert len(done.output.splitlines()) == 1


PIECE = {"what": "manifest", "digest": "sha256:a", "size": 3, "received": 2, "source": "", "source_node": "n2"}
REPORTS = {
    "pull": {"done": False, "pieces": [{**PIECE, "verified": False, "bytes_per_second": 1}]},
    "preheat": {
        "image": "app:v1",
        "done": False,
        "nodes": [{"id": "n2", "node": "n2", "state": "pulling", "runtimes": [], "reason": None, "missing": False}],
    },
}


@pytest.mark.parametrize("end", ["closes", "resets", "hangs"])
@pytest.mark.parametrize("words", [(), ("--json",)])
@pytest.mark.parametrize("command", REPORTS)
def test_a_sidecar_that_dies_at_work_is_none_that_never_answered(
    command: str, words: tuple[str, ...], end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if end == "hangs":
        monkeypatch.setattr(sidecar_client, "_LINE_TIMEOUT", 2.0)
    line = json.dumps(REPORTS[command]).encode() + b"\n"

    def serve(connection: socket.socket, request: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"%x\r\n%b\r\n" % (len(line), line))
        if end == "hangs":
            hangs(connection, request)
        elif end == "resets":
            time.sleep(1)  # a reset discards what the client has not received yet
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with server(serve) as node:
        done = run(node, command, "app:v1", *words)
    assert done.exit_code == 1, done.output
    assert done.stderr == (f"Error: the node ended the connection, or fell silent, before the {command} was over\n")
    assert "n2" in done.stdout, "what arrived is shown"


@pytest.mark.parametrize("words", [(), ("--json",)])
@pytest.mark.parametrize("command", REPORTS)
def test_an_answer_without_a_report(command: str, words: tuple[str, ...]) -> None:
    with server(lambda connection, _: connection.sendall(whole(b""))) as node:
        done = run(node, command, "app:v1", *words)
    assert done.exit_code == 1, done.output
    assert f"before the {command} was over" in done.stderr


def test_half_an_answer_is_that_of_no_stranger() -> None:
    with server(lambda connection, _: connection.sendall(whole(b"{}")[:-1])) as node:
        done = run(node, "status")
    assert done.exit_code == sidecar_client.EXIT_UNREACHABLE
    assert f"no sidecar answers at http://{node}: peer closed connection" in done.output


def port(paths: dict[str, bytes]) -> Serve:
    """A server with answers for these paths."""

    def serve(connection: socket.socket, request: bytes) -> None:
        target = request.split()[1].decode().partition("?")[0]
        connection.sendall(paths.get(target, whole(b"no\n", 404)))

    return serve


V2 = whole(b"{}").replace(b"\r\n\r\n", b"\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\r\n")
OUR_ID = whole(b'[{"ID": "12D3KooW", "Addrs": []}]')
WRONG_PORTS = [
    ({"/v2/": V2, "/id": OUR_ID}, "is the registry of a spegel-consul (--registry-addr)"),
    ({"/v2/": V2.replace(b"200", b"401"), "/id": OUR_ID}, "is the registry of a spegel-consul (--registry-addr)"),
    ({"/v2/": V2}, "is an image registry"),
    ({"/v2/": V2, "/id": whole(b"[]")}, "is an image registry"),
    ({"/v1/status/leader": whole(b'"10.0.0.1:8300"')}, "is Consul or Nomad"),
    ({}, "is no spegel-consul, or one without this command"),
]


@pytest.mark.parametrize(("paths", "words"), WRONG_PORTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_port_is_named(paths: dict[str, bytes], words: str) -> None:
    with server(port(paths)) as node:
        done = run(node, "status")
    assert done.exit_code == sidecar_client.EXIT_UNREACHABLE
    assert words in done.output
    assert ("9090 unless --metrics-addr" in done.output) == bool(paths)
    assert len(done.output.splitlines()) == 1


def test_the_port_of_a_router_is_named() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def speak() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"\x13/multistream/1.0.0\n")
                connection.recv(65536)

    threading.Thread(target=speak, daemon=True).start()
    try:
        done = run(f"127.0.0.1:{listener.getsockname()[1]}", "peers")
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    assert done.exit_code == sidecar_client.EXIT_UNREACHABLE
    assert "is the router of a spegel-consul (--router-addr)" in done.output


def test_events_go_on_when_the_node_is_back_with_numbers_that_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_RETRY_AFTER", 0.05)
    asked: list[bytes] = []
    first = {"last": 7, "life": "1", "events": [{"number": 7, "event": "old"}]}
    again = {"last": 8, "life": "2", "events": [{"number": number, "event": f"new {number}"} for number in (1, 8)]}

    def serve(connection: socket.socket, request: bytes) -> None:
        asked.append(request.split()[1])
        if len(asked) == 1:
            connection.sendall(whole(json.dumps(first).encode()))
        elif len(asked) == 4:
            connection.sendall(whole(json.dumps(again).encode()))
        elif len(asked) > 4:
            connection.sendall(whole(b'{"error": "enough"}', 400))

    with server(serve) as node:
        done = CliRunner().invoke(cli, ["events", "--json", "--node", node])
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["old", "new 1", "new 8"]
    waiting, back, enough = done.stderr.splitlines()
    assert "waiting for it" in waiting
    assert "answers again" in back
    assert "enough" in enough
    assert b"since=0" in asked[0]
    assert all(b"since=7" in each and b"life=1" in each for each in asked[1:4])
    assert b"wait=0.0" in asked[2], "whether it is back is not waited for"
