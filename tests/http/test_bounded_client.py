# What a server that is broken, or somebody else's, may send us, over real sockets: whoever asks gets its own error, in
# time, and never holds more than the limit of the call in memory.

from __future__ import annotations

import base64
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache, partial

import click
import pytest
import trio

from spegel_consul.commands import sidecar_client
from spegel_consul.consul.api import transport
from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import ConsulError, error_for
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.http import answer_bounds
from spegel_consul.join.polled import SourceError
from spegel_consul.join.sources import nomad_api
from spegel_consul.join.sources.http_document import HttpSource
from spegel_consul.join.sources.nomad_api import NomadClient, NomadError, NomadSettings

HEAD = b"HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nContent-Type: application/json\r\n"
Say = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def server(say: Say) -> AsyncIterator[int]:
    """Reads a request's head, lets ``say`` answer, closes. Gives the port."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            seen = b""
            while b"\r\n\r\n" not in seen:
                data = await stream.receive_some(1 << 16)
                if not data:
                    return
                seen += data
            try:
                await say(stream)
            except trio.BrokenResourceError:
                pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def consul_value(port: int) -> object:
    async with ConsulClient(ConsulSettings(port=port)) as client:
        return await client.kv_get("k")


async def consul_list(port: int) -> object:
    async with ConsulClient(ConsulSettings(port=port)) as client:
        return await client.health_service("spegel")


async def consul_services(port: int) -> object:
    async with ConsulClient(ConsulSettings(port=port)) as client:
        return await client.agent_services()


async def nomad(port: int) -> object:
    async with NomadClient(NomadSettings(address=f"http://127.0.0.1:{port}")) as client:
        return await client.request("GET", "/v1/var/x")


async def url(port: int) -> object:
    return await HttpSource(f"http://127.0.0.1:{port}/id").ask()


async def command(port: int) -> object:
    return await trio.to_thread.run_sync(sidecar_client.get, f"http://127.0.0.1:{port}", "/api/status")


ASKERS: dict[str, tuple[Callable[[int], Awaitable[object]], type[Exception]]] = {
    "consul value": (consul_value, ConsulError),
    "consul list": (consul_list, ConsulError),
    "consul services": (consul_services, ConsulError),
    "nomad": (nomad, NomadError),
    "bootstrap url": (url, SourceError),
    "command": (command, click.ClickException),
}


def plain(body: bytes, more: bytes = b"", head: bytes = HEAD) -> Say:
    async def say(stream: trio.SocketStream) -> None:
        await stream.send_all(head + more + b"Content-Length: %d\r\n\r\n" % len(body))
        with memoryview(body) as view:
            for at in range(0, len(body), 65536):
                await stream.send_all(view[at : at + 65536])

    return say


async def endless_chunks(stream: trio.SocketStream) -> None:
    await stream.send_all(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    piece = b"[" * 65536
    while True:
        await stream.send_all(b"%x\r\n%b\r\n" % (len(piece), piece))


async def endless_head(stream: trio.SocketStream) -> None:
    await stream.send_all(HEAD)
    while True:
        await stream.send_all(b"X-More: " + b"x" * 8192 + b"\r\n")


async def endless_line(stream: trio.SocketStream) -> None:
    await stream.send_all(HEAD + b"X-More: ")
    while True:
        await stream.send_all(b"x" * 65536)


async def promised(stream: trio.SocketStream) -> None:
    """Says how long it will be, and is."""
    await stream.send_all(HEAD + b"Content-Length: 99999999999\r\n\r\n")
    while True:
        await stream.send_all(b"[" * 65536)


async def cut(stream: trio.SocketStream) -> None:
    await stream.send_all(HEAD + b'Content-Length: 1000\r\n\r\n[{"')


@cache
def bomb() -> bytes:
    return gzip.compress(b"[" + b"{}," * (40 << 20) + b"{}]", 1)


def row() -> bytes:
    return b'[{"Key": "k", "Value": "' + b"eHh4" * (20 << 20) + b'"}]'


@cache
def recoded() -> bytes:
    return zlib.compress(b"[" + b"{}," * (20 << 20) + b"{}]", 1)


# what makes each, because the large ones take seconds and memory that only their tests should pay
ANSWERS: dict[str, Callable[[], Say]] = {
    "gzip": lambda: plain(bomb(), b"Content-Encoding: gzip\r\n"),
    "gzip twice": lambda: plain(gzip.compress(bomb()), b"Content-Encoding: gzip, gzip\r\n"),
    "deflate": lambda: plain(zlib.compress(b"[]"), b"Content-Encoding: deflate\r\n"),
    "unknown encoding": lambda: plain(b"[]", b"Content-Encoding: x-ours\r\n"),
    "a codec for a charset": lambda: plain(recoded(), head=HEAD[:-2] + b"; charset=zlib\r\n"),
    "endless chunks": lambda: endless_chunks,
    "endless head": lambda: endless_head,
    "endless line": lambda: endless_line,
    "a length beyond all": lambda: promised,
    "cut off": lambda: cut,
    "80 MiB": lambda: plain(row()),
    "32 MiB of empty objects": lambda: plain(b"[" + b"{}," * (10 << 20) + b"{}]"),
    "32 MiB of empty lists": lambda: plain(b"[" + b"[]," * (10 << 20) + b"[]]"),
    "deep": lambda: plain(b"[" * 100_000),
    "deep object": lambda: plain(b'{"a":' * 50_000),
    "a number without end": lambda: plain(b"1" * 100_000),
    "not UTF-8": lambda: plain(b'[{"Key": "\xff\xfe"}]'),
    "a redirect": lambda: plain(b"", b"Location: /elsewhere\r\n", head=b"HTTP/1.1 302 Found\r\n"),
}
MEMORY = 100 << 20
"""Bytes that asking may take at its peak, where the largest answer that is taken has 32 MiB."""


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("asker", ASKERS)
async def test_each_answer_is_an_error_within_limits(asker: str, answer: str) -> None:
    call, error = ASKERS[asker]
    async with server(ANSWERS[answer]()) as port:
        tracemalloc.start()
        try:
            with pytest.raises(error) as caught, trio.fail_after(60):
                await call(port)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert peak < MEMORY


@pytest.mark.parametrize("asker", ASKERS)
async def test_answers_are_asked_for_without_encoding(asker: str) -> None:
    call, error = ASKERS[asker]
    heads: list[bytes] = []
    async with trio.open_nursery() as nursery:

        async def handle(stream: trio.SocketStream) -> None:
            heads.append(bytes(await stream.receive_some(1 << 16)))
            await stream.aclose()

        [listener] = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        with pytest.raises(error):
            await call(listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()
    assert heads
    for head in heads:
        assert b"\r\naccept-encoding: identity\r\n" in head.lower()


@pytest.mark.parametrize("asker", ["consul value", "nomad", "bootstrap url"])
@pytest.mark.parametrize("what", ["body", "head", "interim"])
async def test_an_answer_that_drips_ends_with_its_time(asker: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from spegel_consul.join.sources import http_document, nomad_api

    monkeypatch.setattr(transport, "CALL_TIMEOUT", 0.3)
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT", 0.3)
    monkeypatch.setattr(nomad_api, "_CALL_WITHIN", 0.3)
    monkeypatch.setattr(nomad_api, "_CONNECT_WITHIN", 0.3)
    monkeypatch.setattr(http_document, "ANSWER_WITHIN", 0.3)
    monkeypatch.setattr(http_document, "CONNECT_WITHIN", 0.3)

    async def drip(stream: trio.SocketStream) -> None:
        if what == "interim":
            while True:
                await stream.send_all(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)
                await trio.sleep(0.001)
        await stream.send_all(HEAD if what == "head" else HEAD + b"Content-Length: 1000000\r\n\r\n")
        while True:
            await stream.send_all(b"X: y\r\n" if what == "head" else b" ")
            await trio.sleep(0.05)

    call, error = ASKERS[asker]
    async with server(drip) as port:
        with pytest.raises(error), trio.fail_after(30):
            await call(port)


async def test_cookies_are_not_kept() -> None:
    heads: list[bytes] = []
    async with trio.open_nursery() as nursery:

        async def handle(stream: trio.SocketStream) -> None:
            async with stream:
                while data := await stream.receive_some(1 << 16):
                    heads.append(bytes(data))
                    await plain(b'"10.0.0.1:8300"', b"Set-Cookie: a=b; Path=/\r\n")(stream)

        [listener] = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        async with ConsulClient(ConsulSettings(port=listener.socket.getsockname()[1])) as client:
            for _ in range(2):
                assert await client.status_leader() == "10.0.0.1:8300"
        nursery.cancel_scope.cancel()
    assert len(heads) == 2
    assert b"cookie" not in heads[1].lower()


async def test_a_value_as_long_as_consul_allows_is_read() -> None:
    value = b"x" * (512 << 10)
    row = {"Key": "k", "Value": base64.b64encode(value).decode(), "ModifyIndex": 7, "LockIndex": 0, "Flags": 0}
    async with server(plain(json.dumps([row]).encode())) as port:
        found = await consul_value(port)
    assert isinstance(found, tuple)
    assert found[1].value == value


def instance(number: int) -> object:
    """A row of /v1/health/service with all fields of Consul 1.18: the node, a service with meta, three checks."""
    node, ip = f"nomad-client-{number:05}", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    service = f"spegel-registry-{node}"
    indexes = {"CreateIndex": 100_000 + number, "ModifyIndex": 200_000 + number}
    lan = {"lan_ipv4": ip, "wan_ipv4": ip}

    def check(check_id: str, name: str, output: str, of: str = "") -> object:
        tags = [f"node={node}", "v0.1.0"] if of else []
        about = {"Node": node, "CheckID": check_id, "Name": name, "Status": "passing", "Notes": "", "Output": output}
        service_of = {"ServiceID": of, "ServiceName": "spegel" if of else "", "ServiceTags": tags, "Type": "http"}
        return {
            **about,
            **service_of,
            "Interval": "10s",
            "Timeout": "2s",
            "ExposedPort": 0,
            "Definition": {},
            **indexes,
        }

    return {
        "Node": {
            "ID": f"40e4a748-2192-161a-0510-{number:012}",
            "Node": node,
            "Address": ip,
            "Datacenter": "dc1",
            "TaggedAddresses": {"lan": ip, "wan": ip, **lan},
            "Meta": {"consul-network-segment": "", "consul-version": "1.18.0", "zone": "eu-1a"},
            **indexes,
        },
        "Service": {
            "ID": service,
            "Service": "spegel",
            "Tags": [f"node={node}", "v0.1.0"],
            "Address": ip,
            "TaggedAddresses": {key: {"Address": ip, "Port": 5000} for key in lan},
            "Meta": {"peer_id": f"12D3KooW{number:044}", "version": "0.1.0", "router": f"/ip4/{ip}/tcp/5001"},
            "Port": 5000,
            "Weights": {"Passing": 1, "Warning": 1},
            "EnableTagOverride": False,
            "Proxy": {"Mode": "", "MeshGateway": {}, "Expose": {}},
            "Connect": {},
            "PeerName": "",
            **indexes,
        },
        "Checks": [
            check("serfHealth", "Serf Health Status", "Agent alive and reachable"),
            check(f"service:{service}:1", "spegel is ready", f"HTTP GET http://{ip}:5000/readyz: 200 OK", service),
            check(f"service:{service}:2", "spegel is alive", f"HTTP GET http://{ip}:5000/livez: 200 OK", service),
        ],
    }


async def test_a_list_of_ten_thousand_instances_is_read() -> None:
    body = json.dumps([instance(number) for number in range(10_000)], separators=(",", ":")).encode()
    assert len(body) > 20 << 20
    async with server(plain(body)) as port:
        found = await consul_list(port)
    assert isinstance(found, tuple)
    assert len(found[1]) == 10_000


SHAPES = {
    "objects": b"{},",
    "objects of one": b'{"a":1},',
    "objects of eleven": b"{" + b",".join(b'"%x":1' % key for key in range(11)) + b"},",
    "objects with keys of their own": b'{"%x":1},',
    "lists": b"[],",
    "lists of one": b"[1],",
    "numbers": b"1,",
    "large numbers": b"300,",
    "fractions": b"1.5,",
    "strings": b'"ab",',
    "strings beyond Latin-1": '"ĀĀ",'.encode(),
    "strings beyond the BMP": '"\N{GRINNING FACE}",'.encode(),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_what_is_decoded_takes_a_few_times_the_limit(
    shape: str, record_property: Callable[[str, object], None]
) -> None:
    row = SHAPES[shape]
    written = [row % number if b"%" in row else row for number in range(nomad_api.MAX_BYTES // len(row))]
    dense = answer_bounds.EXPANSION * nomad_api.MAX_BYTES
    per_row = len(row) + sum(each * row.count(mark) for mark, each in answer_bounds.OBJECTS.items())
    seen = []
    for rows in (len(written) - 1, min(len(written), dense // per_row) - 2000):  # all that fits, and what is taken
        body = b"[" + b"".join(written[:rows])[: nomad_api.MAX_BYTES - 100] + b"0]"
        async with server(plain(body)) as port:
            tracemalloc.start()
            try:
                with suppress(NomadError):
                    await nomad(port)
                seen.append(tracemalloc.get_traced_memory()[1] / nomad_api.MAX_BYTES)
            finally:
                tracemalloc.stop()
    title, header = "Memory for answers, in limits of the call", ["shape", "as many as fit", "as many as are taken"]
    record_property("table", (title, header, [shape, *(f"{ratio:.1f}" for ratio in seen)]))
    assert max(seen) < 6


async def test_what_memory_is_too_small_for_is_consuls_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> object:
        raise MemoryError

    monkeypatch.setattr("json.loads", no_memory)
    async with server(plain(b"[]")) as port:
        for call in (consul_value, consul_list, consul_services):
            with pytest.raises(ConsulError):
                await call(port)
        with pytest.raises(NomadError):
            await nomad(port)


def test_an_error_that_is_all_brackets_is_looked_at_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of a TTL are searched for in the text of the server, which may be a megabyte of "["."""
    looked: list[int] = []
    from spegel_consul.consul.api import consul_errors

    search = consul_errors.re.search

    def counted(pattern: str, text: str) -> object:
        looked.append(len(text))
        return search(pattern, text[:1000])

    monkeypatch.setattr(consul_errors.re, "search", counted)
    error_for(500, "Invalid Session TTL '1', must be between " + "[" * (1 << 20))
    assert looked
    assert max(looked) <= 4096
