# One function for each place where bytes of others come in.  It gives them to the code that reads them in the product
# and lets nothing through but what that code says it raises.  Where there is more to be said than "it does not
# break" - two readers agree, what was written is read again - it is asserted.  Only the first reading may be refused,
# so the rest is outside of what catches a refusal.  What is returned is whether anything was read.

"""What is fuzzed."""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, TypeVar

import dns.exception
import dns.message
import httpx
import trio
from google.protobuf.message import DecodeError

from fuzz import http, runtime_files
from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import ConsulError
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.http.peer_client import PeerClient, PeerResponse
from spegel_consul.http.response_head import Reply, ReplyError, parse_reply
from spegel_consul.http.server.request_head import parse_simple
from spegel_consul.join.catalog_routers import to_peer
from spegel_consul.join.peer_formats import parse_document
from spegel_consul.join.polled import SourceError
from spegel_consul.join.remembered_members import PEERS_FILE, Remembered
from spegel_consul.join.sources.dns import _choose
from spegel_consul.join.sources.nomad_api import NomadClient, NomadSettings
from spegel_consul.join.sources.nomad_lock import NomadLock
from spegel_consul.join.sources.nomad_service import NomadServiceSource
from spegel_consul.multiaddrs import Address, contact
from spegel_consul.multiaddrs import decode as decode_address
from spegel_consul.multiaddrs import parse as parse_address
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import OCIError, RangeInvalid
from spegel_consul.oci.media import INDEXES, MANIFESTS
from spegel_consul.oci.path import parse_content_path
from spegel_consul.oci.ranges import ByteRange, parse_ranges
from spegel_consul.oci.reference import Reference
from spegel_consul.peers import PeerError, RingError
from spegel_consul.registry.mirror import validate_head as heads
from spegel_consul.registry.mirror.body.multipart import Multipart
from spegel_consul.ring.dht.claim_messages import MAX_CLAIM_MESSAGE, decode_claim, decode_verdict, encode_claim
from spegel_consul.ring.dht.messages import Frames, MemberReport, WireError, decode, decode_members, decode_withdrawal
from spegel_consul.ring.members.table import Members
from spegel_consul.ring.net.libp2p.layers import read_description
from spegel_consul.runtimes.backup_record import Record
from spegel_consul.store.containerd import conversion
from spegel_consul.store.containerd.proto import containerd_pb2 as pb
from spegel_consul.store.manifest_walk import ManifestInvalid
from spegel_consul.store.manifest_walk import parse as parse_manifest
from spegel_consul.web.preheat.preheat_report import BadLine, NodePreheat
from tests.consul.asking import put_key

T = TypeVar("T")

_ME = b"\x00\x24\x08\x01\x12\x20" + bytes(32)


def run(function: Callable[..., Any], *args: Any) -> Any:
    """What an async function returns that waits for nothing outside: cheaper than a loop for each."""
    return trio.run(function, *args)


def reference(data: bytes) -> bool:
    try:
        found = Reference.parse(data.decode("utf-8", "surrogateescape"))
    except OCIError:
        return False
    assert Reference.parse(str(found)) == found
    assert ".." not in found.repository.split("/")
    return True


def path(data: bytes) -> bool:
    raw, _, query = data.decode("latin-1").partition("?")
    try:
        request = parse_content_path(raw, query)
    except OCIError:
        return False
    assert request.key
    assert str(request.reference).isprintable()
    return True


def byte_range(data: bytes) -> bool:
    try:
        wanted = parse_ranges(data.decode("latin-1"))
    except OCIError:
        return False
    if wanted is None:
        return False
    assert parse_ranges(wanted.header) == wanted
    for size in (0, 1, 1000, 1 << 40):
        try:
            spans = wanted.within(size)
        except RangeInvalid:
            continue
        _framed(spans, size)
    return True


def _framed(spans: tuple[ByteRange, ...], size: int) -> None:
    """Ranges that are to be sent, and the frame around them."""
    ordered = sorted(spans, key=lambda span: span.start)
    assert all(0 <= span.start < span.stop <= size == span.size for span in spans)
    assert all(one.stop < other.start for one, other in pairwise(ordered))
    multipart = Multipart("a/b", spans)
    frame = sum(len(multipart.before(place)) for place in range(len(spans))) + len(multipart.end)
    assert multipart.length == frame + sum(span.length for span in spans) <= frame + size


def request_head(data: bytes) -> bool:
    found = parse_simple(data)
    assert found is None or b"\r" not in found.path + b"".join(found.headers.values())
    return found is not None


def reply(data: bytes) -> bool:
    read = False
    for method in ("GET", "HEAD"):
        try:
            found = parse_reply(data, method)
        except ReplyError:
            continue
        if found is not None:
            read = True
            assert len(found.body) <= max(found.length, 0)
            for wanted in (None, "bytes=5-9", "bytes=-5"):
                _judged(found, wanted)
    return read


def _judged(found: Reply, wanted: str | None) -> None:
    """What a mirror makes of a head, and of the body that came with it as a manifest."""
    connection = SimpleNamespace(reused=True, encrypted=False)
    response = PeerResponse(PeerClient(), connection, found)  # type: ignore[arg-type]
    request = parse_content_path(f"/v2/a/blobs/{Digest.of(b'')}", "")
    with suppress(PeerError, RangeInvalid):
        head = heads.judge(response, request, wanted)
        assert 0 <= head.start <= head.stop <= head.size
        assert head.stop - head.start == int(found.headers[b"content-length"])
        assert not set("\r\n\0") & set(head.media_type)
    with suppress(PeerError):
        assert heads.type_of(found.body) in MANIFESTS | INDEXES


def _messages(data: bytes, frames: Frames, read: Callable[[bytes], T]) -> list[T]:
    """Messages of a stream, up to the first that is refused."""
    found: list[T] = []
    with suppress(WireError):
        found.extend(map(read, frames.feed(data)))
    return found


def kad(data: bytes) -> bool:
    messages = _messages(data, Frames(64 << 10), decode)
    for message in messages:
        for peer in (*message.closer, *message.providers):
            _usable(peer.id, peer.addresses)
    return bool(messages)


def members(data: bytes) -> bool:
    table = Members(_ME, capacity=64)
    reports: list[MemberReport] = []
    with suppress(WireError):
        for body in Frames().feed(data):
            reports.extend(decode_members(body))  # those in front of one that is refused stay
    for report in reports:
        said = _usable(report.peer.id, report.peer.addresses)
        table.learn(said, 1.0, age=report.age, source=b"source")
    assert len(table) <= 64
    return bool(reports)


def _usable(peer: bytes, addresses: tuple[bytes, ...]) -> Any:
    said = contact(peer, addresses, loopback=False)
    for each in (*said.routers, *((said.registry,) if said.registry else ())):
        assert decode_address(each.encode()) == each
        assert parse_address(str(each)) == each
        assert not _leads_back(each), f"{each} leads back to this machine"
    return said


def _leads_back(address: Address) -> bool:
    ip = ipaddress.ip_address(address.host)
    inner = getattr(ip, "ipv4_mapped", None) or ip
    return bool(inner.is_loopback or inner.is_unspecified or inner.is_multicast)


def withdrawal(data: bytes) -> bool:
    return bool(_messages(data, Frames(64 << 10), decode_withdrawal))


def claim(data: bytes) -> bool:
    """A report to a keeper, and a verdict."""
    reports = _messages(data, Frames(MAX_CLAIM_MESSAGE), decode_claim)
    for report in reports:
        (again,) = Frames(MAX_CLAIM_MESSAGE).feed(encode_claim(*report))
        assert decode_claim(again) == report
    verdicts = _messages(data, Frames(MAX_CLAIM_MESSAGE), decode_verdict)
    for source in chain.from_iterable(verdict.sources for verdict in verdicts):
        _usable(source.id, source.addresses)
    return bool(reports or verdicts)


def identify(data: bytes) -> bool:
    try:
        identity = read_description(data)
    except RingError:
        return False
    _usable(_ME[:-1] + b"\1", identity.addresses)
    return True


def multiaddr(data: bytes) -> bool:
    found = parse_address(data.decode("utf-8", "replace"))
    assert found is None or parse_address(str(found)) == found
    return found is not None


def containerd_event(data: bytes) -> bool:
    found = None
    with suppress(DecodeError):
        found = conversion.event(pb.Envelope.FromString(data), "k8s.io")
    for topic in ("/images/create", "/images/delete", "/content/create"):
        envelope = pb.Envelope(namespace="k8s.io", topic=topic)
        envelope.event.value = data
        conversion.event(envelope, "k8s.io")
    with suppress(DecodeError):
        conversion.image_record(pb.Image.FromString(data))
    with suppress(DecodeError):
        conversion.content(pb.Info.FromString(data))
    return found is not None


def manifest(data: bytes) -> bool:
    try:
        document = parse_manifest(data)
    except ManifestInvalid:
        return False
    for child in (*document.needed, *document.extras):
        assert child.size >= 0
        assert "\r" not in child.media_type
    return True


def leader_value(data: bytes) -> bool:
    record = LeaderRecord.parse(data)
    if record is None:
        return False
    json.dumps(record.known())
    for address in record.to_peer().addrs:
        parse_address(address)
    return True


def peer_document(data: bytes) -> bool:
    try:
        found = parse_document(data)
    except ValueError:
        return False
    assert all(peer.addrs for peer in found)
    return bool(found)


def preheat_line(data: bytes) -> bool:
    """A line of a peer that was asked to pull; what was read is read again alike."""
    try:
        found = NodePreheat.parse(json.loads(data))
    except (BadLine, ValueError, RecursionError):
        return False
    again = NodePreheat.parse(json.loads(json.dumps(found.to_json())))
    assert [pull.size for pull in again.pulls] == [pull.size for pull in found.pulls]
    assert (again.state, again.reason) == (found.state, found.reason)
    return True


def consul_answer(data: bytes) -> bool:
    """Whatever an agent, or what stands in its place, answers."""
    index, _, body = data.partition(b"\n")
    read: list[object] = []

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=body, headers={"X-Consul-Index": index.decode("latin-1").strip()})

    async def ask() -> None:
        async with ConsulClient(ConsulSettings(), transport=httpx.MockTransport(handle)) as client:
            with suppress(ConsulError):
                _, entry = await client.kv_get("spegel/leader")
                if entry is not None:
                    read.append(LeaderRecord.parse(entry.value))
            with suppress(ConsulError):
                _, services = await client.health_service("spegel-router")
                for service in services:
                    read.append(peer := to_peer(service))
                    for address in peer.addrs if peer else ():
                        parse_address(address)
            with suppress(ConsulError):
                await client.agent_services()
            with suppress(ConsulError):
                await client.status_leader()
            with suppress(ConsulError):
                await client.session_create("x", ttl=10, lock_delay=1)
            with suppress(ConsulError):
                await client.session_renew("x")
            with suppress(ConsulError):
                await put_key(client, "spegel/leader", b"")

    with suppress(UnicodeEncodeError):
        run(ask)
    return any(read)


def kv_value(data: bytes) -> bool:
    entry = {"Key": "spegel/leader", "Value": base64.b64encode(data).decode(), "ModifyIndex": 1, "LockIndex": 1}
    return consul_answer(b"1\n" + json.dumps([entry]).encode())


def nomad_answer(data: bytes) -> bool:
    read: list[object] = []

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=data, headers={"X-Nomad-Index": "7"})

    async def ask() -> None:
        async with NomadClient(NomadSettings(), transport=httpx.MockTransport(handle)) as client:
            lock, me = NomadLock(client, "spegel/leader"), LeaderRecord("12D3", ("/ip4/10.0.0.1/tcp/1",))
            with suppress(SourceError):
                read.append(await NomadServiceSource(client, "spegel-router", me.to_peer()).ask())
            with suppress(SourceError):
                if (entry := (await lock.read(0, 1.0, consistent=False))[1]) is not None:
                    read.append(LeaderRecord.parse(entry.value))
            with suppress(SourceError):
                await lock.acquire("s", me)

    run(ask)
    return any(read)


def dns_answer(data: bytes) -> bool:
    """What dnspython makes of an answer, and the router addresses that we make of that."""
    try:
        answer = dns.message.from_wire(data)
    except (dns.exception.DNSException, ValueError):
        return False
    endpoints = set()
    for rrset in (*answer.answer, *answer.additional):
        for record in rrset:
            if isinstance(getattr(record, "address", None), str):
                endpoints.add((record.address, 5001))
            elif hasattr(record, "target") and hasattr(record, "port"):
                record.target.to_text()
    for host, port in _choose(endpoints):
        assert parse_address(str(Address(host, port))) is not None
    return bool(endpoints)


def state_files(data: bytes) -> bool:
    """Members of the last run, and the record of what was configured."""
    with TemporaryDirectory() as directory:
        Path(directory, PEERS_FILE).write_bytes(data)
        remembered = Remembered(Path(directory))
        run(remembered.load)
        for peer in remembered.peers:
            for address in peer.addrs:
                parse_address(address)
    try:
        record = Record.load(data)
    except ValueError:
        return False
    again = Record.load(record.dump())
    # as text, because a note may say NaN, which equals nothing
    assert again.made == record.made
    assert sorted(map(repr, again.files.items())) == sorted(map(repr, record.files.items()))
    return True


TARGETS: dict[str, Callable[[bytes], bool]] = {
    target.__name__: target
    for target in (
        reference, path, byte_range, request_head, reply, http.both_paths, kad, members, withdrawal, claim, identify,
        multiaddr, containerd_event, manifest, leader_value, peer_document, preheat_line, consul_answer, kv_value,
        nomad_answer, dns_answer, runtime_files.hosts_toml, runtime_files.daemon_json, runtime_files.registries_conf,
        runtime_files.buildkitd_toml, runtime_files.containerd_config, state_files,
    )
}  # fmt: skip
