"""A registry that answers from its own store."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.http.server.connection_limits import ConnectionLimits
from spegel_consul.http.server.idle_timer import IdleTimer
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.oci.media import OCI_MANIFEST

LAYER = bytes(range(256)) * 9000
ABSENT = Digest("sha256:" + "00" * 32)


def manifest(layer: Digest, config: Digest) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"digest": config, "size": 2, "mediaType": "application/vnd.oci.image.config.v1+json"},
            "layers": [{"digest": layer, "size": len(LAYER), "mediaType": "application/vnd.oci.image.layer.v1.tar"}],
        }
    ).encode()


@pytest.fixture
async def node(start_node: Any) -> Any:
    node = await start_node()
    layer, config = node.store.add_content(LAYER), node.store.add_content(b"{}")
    node.layer = layer
    node.digest = node.store.add_image("docker.io/library/app:v1", manifest(layer, config))
    return node


async def get(node: Any, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(verify=False, base_url=node.url, trust_env=False) as client:
        return await client.request(method, path, headers=headers)


async def test_manifest_by_tag_and_digest(node: Any) -> None:
    for path in ("v1?ns=docker.io", node.digest, f"{node.digest}?ns=quay.io"):
        response = await get(node, f"/v2/library/app/manifests/{path}")
        assert response.status_code == 200
        assert response.headers["content-type"] == OCI_MANIFEST
        assert response.headers["docker-content-digest"] == node.digest == Digest.of(response.content)
        only_head = await get(node, f"/v2/library/app/manifests/{path}", "HEAD")
        assert only_head.status_code == 200
        assert only_head.headers["content-length"] == str(len(response.content))
        assert only_head.content == b""


@pytest.mark.parametrize(
    ("wanted", "status", "expected", "content_range"),
    [
        (None, 200, LAYER, None),
        ("bytes=0-", 200, LAYER, None),
        ("bytes=100-199", 206, LAYER[100:200], f"bytes 100-199/{len(LAYER)}"),
        ("bytes=-7", 206, LAYER[-7:], f"bytes {len(LAYER) - 7}-{len(LAYER) - 1}/{len(LAYER)}"),
        (f"bytes={len(LAYER)}-", 416, None, f"bytes */{len(LAYER)}"),
    ],
)
async def test_blob_ranges(
    node: Any, wanted: str | None, status: int, expected: bytes | None, content_range: str | None
) -> None:
    headers = {"range": wanted} if wanted else {}
    response = await get(node, f"/v2/library/app/blobs/{node.layer}", **headers)
    assert response.status_code == status
    assert response.headers.get("content-range") == content_range
    if expected is not None:
        assert response.content == expected
        assert response.headers["accept-ranges"] == "bytes"
    else:
        assert response.json()["errors"][0]["code"] == "RANGE_INVALID"


async def test_a_layer_is_not_a_manifest(node: Any) -> None:
    response = await get(node, f"/v2/library/app/manifests/{node.layer}")
    assert response.status_code == 404
    assert response.json()["errors"][0]["code"] == "MANIFEST_UNKNOWN"


async def test_peers_are_answered_from_the_own_store_only(node: Any) -> None:
    response = await get(node, f"/v2/library/app/blobs/{ABSENT}", **{"X-Spegel-Mirrored": "true"})
    assert response.status_code == 404
    assert node.router.asked == []
    response = await get(node, "/v2/library/app/manifests/v1?ns=docker.io", **{"X-Spegel-Mirrored": "true"})
    assert response.status_code == 200


async def test_the_own_runtime_asks_others_about_its_tags(node: Any) -> None:
    response = await get(node, "/v2/library/app/manifests/v1?ns=docker.io", **{"User-Agent": "containerd/2.1.9"})
    assert response.status_code == 404
    assert node.router.asked == ["docker.io/library/app:v1"]
    by_digest = await get(node, f"/v2/library/app/manifests/{node.digest}", **{"User-Agent": "containerd/2.1.9"})
    assert by_digest.status_code == 200


@pytest.mark.parametrize("agent", ["containerd/2.1.9", "docker/28.5.2"])
async def test_with_the_registry_in_the_path_the_own_runtime_gets_what_the_node_has(node: Any, agent: str) -> None:
    """It would ask no registry that knows better, so the pull would fail."""
    response = await get(node, "/v2/docker.io/library/app/manifests/v1", **{"User-Agent": agent})
    assert response.status_code == 200
    assert node.router.asked == []


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/app/blobs/md5:00", 400, "DIGEST_INVALID"),
        ("/v2/app/blobs/sha256:zz", 400, "DIGEST_INVALID"),
        ("/v2/../../etc/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a/%2e%2e/b/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a/%2E%2E%2Fb/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/app/manifests/" + "t" * 129, 400, "TAG_INVALID"),
        ("/v2/app/manifests/v1?ns=%00", 400, "NAME_INVALID"),
        ("/v2/app/manifests/%ff", 400, "NAME_INVALID"),
        ("/v2/app/tags/list", 404, "NAME_UNKNOWN"),
        ("/v2/app/blobs/uploads/", 404, "NAME_UNKNOWN"),
        ("/nowhere", 404, "NAME_UNKNOWN"),
        (f"/v2/app/blobs/{ABSENT}", 404, "BLOB_UNKNOWN"),
        ("/v2/app/manifests/none", 404, "MANIFEST_UNKNOWN"),
        ("/v2/app/manifests/none?ns=docker.io", 404, "MANIFEST_UNKNOWN"),
    ],
)
async def test_bad_requests_get_spec_bodies(
    node: Any, path: str, status: int, code: str, capfd: pytest.CaptureFixture[str]
) -> None:
    # httpx would tidy the path up, so it is sent as it stands
    response = await raw(node, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert response.startswith(f"HTTP/1.1 {status} ".encode())
    assert json.loads(response.partition(b"\r\n\r\n")[2])["errors"][0]["code"] == code
    assert b"www-authenticate" not in response.lower()
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err


async def raw(node: Any, request: bytes) -> bytes:
    stream = await trio.open_tcp_stream(*node.address)
    async with stream:
        with trio.fail_after(5):
            try:
                await stream.send_all(request)
            except trio.BrokenResourceError:
                pass
            response = b""
            while True:
                try:
                    data = await stream.receive_some()
                except trio.BrokenResourceError:
                    return response
                if not data:
                    return response
                response += data


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * (1 << 20) + b"\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03garbage\r\n\r\n", 400),
        (b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 6\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 505),
        (b"GET /v2/ HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET /v2/ HTTP/0.9\r\nHost: x\r\n\r\n", 505),
        (b"get /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"Head /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"FROB /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", 501),
    ],
)
async def test_what_is_not_http_gets_an_error_body(
    node: Any, request_bytes: bytes, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    response = await raw(node, request_bytes)
    if response:  # a reset may overtake the answer, when more was sent than was read
        assert response.startswith(f"HTTP/1.1 {status} ".encode())
        assert b'{"errors": [' in response
    assert (await get(node, "/v2/")).status_code == 200
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err


async def test_a_later_minor_version_is_understood(node: Any) -> None:
    """RFC 9110, 2.5: it is answered as the highest minor version that this server speaks."""
    for version in ("1.0", "1.1", "1.2", "1.9"):
        fields = "Host: x\r\nConnection: close\r\n\r\n"
        response = await raw(node, f"GET /v2/library/app/blobs/{node.layer} HTTP/{version}\r\n{fields}".encode())
        assert response.startswith(b"HTTP/1.1 200 ")
        assert response.endswith(LAYER)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"HEAD /v2/ HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"HEAD /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ],
)
async def test_a_refusal_of_head_has_no_body(
    node: Any, head: bytes, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    response = await raw(node, head)
    assert response.startswith(f"HTTP/1.1 {status} ".encode())
    assert response.endswith(b"\r\n\r\n")
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH", "TRACE"])
async def test_writing_is_refused(node: Any, method: str) -> None:
    for path in ("/v2/app/manifests/v1", "/v2/"):
        response = await get(node, path, method)
        assert response.status_code == 405
        assert response.json()["errors"][0]["code"] == "UNSUPPORTED"


async def test_version_check_and_health(node: Any, start_node: Any) -> None:
    for path in ("/v2/", "/v2"):
        response = await get(node, path)
        assert (response.status_code, response.content) == (200, b"{}")
    assert (await get(node, "/readyz")).status_code == 200
    broken = await start_node(problem="containerd is away")
    response = await get(broken, "/readyz")
    assert (response.status_code, response.text) == (503, "containerd is away\n")
    assert (await get(broken, "/livez")).status_code == 200


async def test_filters(start_node: Any) -> None:
    node = await start_node(images=ImageFilter.build(["docker.io"], [":latest$"]))
    for path in ("/v2/app/manifests/v1?ns=quay.io", "/v2/app/manifests/latest?ns=docker.io"):
        response = await get(node, path)
        assert response.status_code == 404
        assert "not mirrored here" in response.json()["errors"][0]["message"]
    assert node.router.asked == []


async def test_pipelined_requests_are_answered_in_order(node: Any) -> None:
    one = f"GET /v2/library/app/manifests/{node.digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    last = f"GET /v2/library/app/blobs/{node.layer} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    response = await raw(node, one + one + last)
    assert response.count(b"HTTP/1.1 200") == 3
    assert response.endswith(LAYER)


async def test_a_client_that_leaves_early_harms_nobody(node: Any) -> None:
    for _ in range(5):
        stream = await trio.open_tcp_stream(*node.address)
        async with stream:
            await stream.send_all(f"GET /v2/library/app/blobs/{node.layer} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await stream.receive_some(1000)
    assert (await get(node, f"/v2/library/app/blobs/{node.layer}")).content == LAYER


async def test_a_client_that_pipelines_and_leaves_is_not_kept(node: Any) -> None:
    big = node.store.add_content(bytes(8 << 20))
    request = f"GET /v2/library/app/blobs/{big} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    before = open_sockets()
    for _ in range(10):
        stream = await trio.open_tcp_stream(*node.address)
        async with stream:
            await stream.send_all(request + request)
            await stream.receive_some(1000)
    with trio.fail_after(5):
        while open_sockets() > before:
            await trio.sleep(0.02)


def open_sockets() -> int:
    return sum(str(entry.readlink()).startswith("socket:") for entry in open_files())


def open_files() -> list[Path]:
    return [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]


async def test_idle_connections_are_closed_and_busy_ones_are_not(start_node: Any) -> None:
    node = await start_node(keep_alive=0.3)
    small = node.store.add_content(b"small")
    big = node.store.add_content(bytes(16 << 20))
    request = f"GET /v2/library/app/blobs/{small} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    stream = await trio.open_tcp_stream(*node.address)
    async with stream:
        with trio.fail_after(5):
            for _ in range(4):  # used more often than it would be closed
                await stream.send_all(request)
                await stream.receive_some(1000)
                await trio.sleep(0.15)
            await stream.send_all(request.replace(small.encode(), big.encode()))
            received, started = 0, trio.current_time()
            while received < 16 << 20:  # and once for longer than the limit
                data = await stream.receive_some(1 << 20)
                assert data
                received += len(data)
                if trio.current_time() - started < 0.6:
                    await trio.sleep(0.1)
            while await stream.receive_some(1000):
                pass


async def test_a_client_that_asks_for_nothing_is_left(start_node: Any) -> None:
    node = await start_node(keep_alive=0.3)
    with trio.fail_after(5):
        async with await trio.open_tcp_stream(*node.address) as stream:
            assert await stream.receive_some(1) == b""


async def test_a_connection_for_one_range_has_no_timer(start_node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[IdleTimer] = []
    monkeypatch.setattr(IdleTimer, "watch", lambda self, group: watched.append(self))
    node = await start_node()
    digest = node.store.add_content(bytes(64 << 20))
    tasks = trio.lowlevel.current_statistics().tasks_living
    for _ in range(10):
        # the request is there before the server can accept the connection
        with socket.create_connection(node.address) as client:
            client.sendall(f"GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: x\r\nRange: bytes=5-\r\n\r\n".encode())
            client.setblocking(False)
            taken = 0
            while taken < 8 << 20:
                await trio.lowlevel.wait_readable(client)
                taken += len(client.recv(1 << 20))
            trio.lowlevel.notify_closing(client)
    with trio.fail_after(5):
        while trio.lowlevel.current_statistics().tasks_living > tasks:
            await trio.sleep(0.01)
    # a busy kernel may deliver a request late, and hypercorn has a timer for each
    assert len(watched) < 5 or node.fast_path is None


@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_request_that_waits_for_its_turn_is_answered_before_a_stop(
    start_node: Any, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    limits, waiting, go_on = ConnectionLimits(1024), trio.Event(), trio.Event()
    node = await start_node(host="127.0.0.2", limits=limits)  # so the client counts as another machine
    digest = node.store.add_content(b"small")
    request = f"GET /v2/library/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode()

    async def turn(address: str) -> None:
        waiting.set()
        await go_on.wait()

    with trio.fail_after(5):
        async with await trio.open_tcp_stream(*node.address) as stream:
            await stream.send_all(request)
            received = b""
            while not received.endswith(b"small"):
                received += await stream.receive_some(1000)
            request = request.replace(b"\r\n\r\n", b"\r\nX: y\r\n\r\n")  # one that is not remembered
            if pieces == 2:
                await stream.send_all(request[:9])
                await trio.sleep(0.1)
                request = request[9:]
            monkeypatch.setattr(limits.turns, "take", turn)
            await stream.send_all(request)
            await waiting.wait()
            node.stop.set()
            await trio.sleep(0.1)
            go_on.set()
            received = b""
            while data := await stream.receive_some(1000):
                received += data
            assert received.endswith(b"small"), received


async def test_a_websocket_is_not_opened(node: Any) -> None:
    response = await raw(
        node, b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    )
    assert response.startswith(b"HTTP/1.1 200 ")


async def test_a_client_that_stops_reading_does_not_keep_the_server_from_stopping(start_node: Any) -> None:
    node = await start_node()
    big = node.store.add_content(bytes(64 << 20))
    stream = await trio.open_tcp_stream(*node.address)
    async with stream:
        await stream.send_all(f"GET /v2/library/app/blobs/{big} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await stream.receive_some(1000)
        node.stop.set()
        with trio.fail_after(5):
            while True:
                try:
                    if not await stream.receive_some(1 << 20):
                        break
                except trio.BrokenResourceError:
                    break
                await trio.sleep(0.1)
    with pytest.raises(OSError):
        await trio.open_tcp_stream(*node.address)
