"""Answers of sources that do not work as they should, one question at a time."""

from __future__ import annotations

import datetime
import json
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from dns import message, rcode, rdatatype, rrset
from lab.process import HANG

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.disk import foreign_files
from spegel_consul.join.peer_formats import parse_document
from spegel_consul.join.polled import ASK_WITHIN, Source, SourceError
from spegel_consul.join.sources import dns
from spegel_consul.join.sources.dns import DnsSource
from spegel_consul.join.sources.http_document import HttpSource
from spegel_consul.join.sources.peer_file import FileSource
from spegel_consul.peers import PeerInfo
from tests.consul.realconsul import ConsulAgent
from tests.join.test_conformance import Dnsmasq, HttpPlace, dnsmasq, web  # noqa: F401  (fixtures)

ID = "12D3KooWGbGLkFLkYnFMCC6QRJHfYgdFWNcRXhNMoFJnLDsyFXnN"
PEER = PeerInfo(None, ("/ip4/10.0.0.7/tcp/5001",))


async def asked(source: Source, within: float = 8) -> list[PeerInfo]:
    with trio.fail_after(within):
        return list(await source.ask())


async def refused(source: Source, within: float = 8) -> str:
    with pytest.raises(SourceError) as caught:
        await asked(source, within)
    text = str(caught.value)
    assert text
    assert "\n" not in text
    assert len(text) < 300
    return text


@pytest.mark.parametrize(
    ("body", "peers"),
    [
        (b'[{"ID":"%s","Addrs":["/ip4/10.0.0.7/tcp/5001"]}]' % ID.encode(), [PeerInfo(ID, PEER.addrs)]),
        (b'[{"Addrs":["/ip4/10.0.0.7/tcp/5001"]}]', [PEER]),
        (b'[{"ID":"not an id!","Addrs":["/ip4/10.0.0.7/tcp/5001","junk",7]}]', [PEER]),
        (b'[{"ID":"","Addrs":["/ip4/10.0.0.7/tcp/5001/p2p/%s"]}, 7, {}]' % ID.encode(), [PEER]),
        (f"/ip4/10.0.0.7/tcp/5001/p2p/{ID}\n".encode(), [PeerInfo(ID, PEER.addrs)]),  # Spegel before 0.1
        (b"# written by a template\n10.0.0.7:5001  # n7\n\n", [PEER]),
        (json.dumps({"peer_id": ID, "addrs": list(PEER.addrs)}).encode(), [PeerInfo(ID, PEER.addrs)]),
        (b"a:1\nb:1\nc:1\nd:1\n", [PeerInfo(None, (f"/dns/{name}/tcp/1",)) for name in "abc"]),
        (b"[]", []),
        (b"", []),
        (b"# nothing yet\n", []),
    ],
)  # fmt: skip
def test_documents(body: bytes, peers: list[PeerInfo]) -> None:
    assert list(parse_document(body)) == peers


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"<!DOCTYPE html>\n<title>log in</title>", "a web page"),
        (b"\x00\xff", "not text"),
        (b'[{"ID":"x","Addrs":["/ip4/1', "not complete JSON"),
        (b'{"state": "vacant"}', "without a usable peer"),
        (b'[{"Addrs":["/ip4/10.0.0.7/udp/5001"]}]', "without a usable peer"),
        (b"[" * 5000, "not complete JSON"),
        (b"10.0.0.7:5001\n10.0.0.", "bootstrap peer"),
        (b"x" * (65 << 10), "longer than 64 KiB"),
    ],
)
def test_documents_that_are_none(body: bytes, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_document(body)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b"", "answers 404"),
        (302, b"", "answers 302"),
        (500, b"<html>", "answers 500"),
        (200, b"<html><body>log in</body></html>", "a web page"),
        (200, b"[{]", "not complete JSON"),
        (200, b"x" * (10 << 20), "more than 64 KiB"),
    ],
)
async def test_http_answers_of_no_use(web: HttpPlace, status: int, body: bytes, expected: str) -> None:  # noqa: F811
    web.status, web.body = status, body
    assert expected in await refused(HttpSource(web.url))


async def test_http_without_a_server() -> None:
    assert await refused(HttpSource("http://127.0.0.1:1/id"))


async def test_http_with_mutual_tls(web: HttpPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    authority = Authority()
    authority.issue(tmp_path / "server", "localhost")
    authority.issue(tmp_path / "client", "client")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tmp_path / "server/ca.crt"))
    context.load_cert_chain(tmp_path / "server/tls.crt", tmp_path / "server/tls.key")
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the authority is one without key identifiers, as private ones are
    web.server.socket = context.wrap_socket(web.server.socket, server_side=True)
    web.body = b"10.0.0.7:5001\n"
    url = f"https://localhost:{web.server.server_port}/id"
    assert await asked(HttpSource(url, tmp_path / "client")) == [PEER]
    assert "certificate" in (await refused(HttpSource(url))).lower()
    web.server.socket.context.verify_mode = ssl.CERT_NONE
    assert "certificate" in (await refused(HttpSource(url))).lower(), "this system does not know the authority"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "client/ca.crt"))
    assert await asked(HttpSource(url)) == [PEER]
    (tmp_path / "client/tls.key").unlink()
    with pytest.raises(ValueError, match=r"tls\.crt and tls\.key belong together"):
        HttpSource(url, tmp_path / "client")


async def test_a_file_that_comes_late_and_is_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "peers"
    source = FileSource(path)
    assert "No such file" in await refused(source)
    path.write_text('[{"Addrs": ["/ip4/10.0.0.')
    assert "not complete JSON" in await refused(source)
    assert "not complete JSON" in await refused(source)  # nor the second time
    path.write_text('[{"Addrs": ["/ip4/10.0.0.7/tcp/5001"]}]')
    assert await asked(source) == [PEER]
    path.write_text("")
    assert await asked(source) == []


# -- DNS


@pytest.mark.real
async def test_thirty_addresses_are_sorted_and_the_first_three_taken(dnsmasq: Dnsmasq) -> None:  # noqa: F811
    addresses = [f"10.0.{n // 10}.{n}" for n in range(2, 32)]
    random.Random(1).shuffle(addresses)
    dnsmasq.serve(*addresses, "fd00::9", "fd00::1:2")
    source = DnsSource("spegel.test.", 5001, ("127.0.0.1", dnsmasq.port))
    with trio.fail_after(5):
        while len(peers := [peer.addrs[0] for peer in await source.ask()] if await served(source) else []) < 5:
            await trio.sleep(0.02)
    assert peers == [
        "/ip4/10.0.0.2/tcp/5001",
        "/ip4/10.0.0.3/tcp/5001",
        "/ip4/10.0.0.4/tcp/5001",
        "/ip6/fd00::9/tcp/5001",
        "/ip6/fd00::1:2/tcp/5001",
    ]


async def served(source: Source) -> bool:
    try:
        await source.ask()
    except SourceError:
        return False
    return True


@pytest.mark.real
async def test_srv_records_bring_their_ports(dnsmasq: Dnsmasq) -> None:  # noqa: F811
    source = DnsSource("_router._tcp.spegel.test", 5001, ("127.0.0.1", dnsmasq.port))
    assert [peer.addrs[0] for peer in await asked(source)] == [f"/ip4/10.1.0.{n}/tcp/{6000 + n}" for n in (1, 2, 3)]


@pytest.mark.real
@pytest.mark.parametrize(("missing", "found"), [({2}, [1, 3, 4]), ({1, 2, 3, 4, 5}, [])])
async def test_targets_that_do_not_exist_are_left_out(tmp_path: Path, missing: set[int], found: list[int]) -> None:
    srv = [f"--srv-host=r.test,host{n}.test,{6000 + n}" for n in range(1, 6)]
    server = Dnsmasq(tmp_path, *srv, *(f"--host-record=host{n}.test,10.1.0.{n}" for n in {1, 2, 3, 4, 5} - missing))
    source = DnsSource("r.test", 5001, ("127.0.0.1", server.port))
    try:
        if found:
            assert [peer.addrs[0] for peer in await asked(source)] == [f"/ip4/10.1.0.{n}/tcp/{6000 + n}" for n in found]
        else:
            assert await refused(source) == "host1.test: the name does not exist (NXDOMAIN)"
    finally:
        server.stop()


@pytest.mark.real
async def test_a_name_that_does_not_exist(dnsmasq: Dnsmasq) -> None:  # noqa: F811
    assert "NXDOMAIN" in await refused(DnsSource("nobody.test", 5001, ("127.0.0.1", dnsmasq.port)))


@contextmanager
def deaf_server(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP and a UDP socket on one port; a thread does what ``handle`` says with each connection."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(tcp.getsockname())
        tcp.listen()
        held = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = tcp.accept()
                except OSError:
                    return
                held.append(connection)
                handle(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield tcp.getsockname()[1]
        finally:
            tcp.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for connection in held:
                connection.close()


@contextmanager
def udp_server(zone: dict[tuple[str, str], list[str]]) -> Iterator[int]:
    """Answers over UDP without an additional section; a client that connects over TCP waits."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(tcp.getsockname())
        tcp.listen()

        def answer() -> None:
            while (received := udp.recvfrom(4096))[0]:
                question = message.from_wire(received[0])
                [asked_for] = question.question
                reply = message.make_response(question)
                key = asked_for.name.to_text(), rdatatype.to_text(asked_for.rdtype)
                if key in zone:
                    reply.answer.append(rrset.from_text(asked_for.name, 1, "IN", key[1], *zone[key]))
                elif key[0] not in {name for name, _ in zone}:
                    reply.set_rcode(rcode.NXDOMAIN)
                udp.sendto(reply.to_wire(), received[1])

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield udp.getsockname()[1]
        finally:
            udp.sendto(b"", udp.getsockname())
            thread.join(5)


TARGETS = {("r.test.", "SRV"): [f"1 1 {6000 + n} host{n}.test." for n in range(1, 6)]}


async def test_a_resolver_that_drops_tcp_answers_for_all_targets_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question waits in vain for TCP, so the targets are asked at the same time."""
    monkeypatch.setattr(dns, "_QUESTION_WITHIN", 1.0)
    with udp_server({**TARGETS, **{(f"host{n}.test.", "A"): [f"10.1.0.{n}"] for n in range(1, 6)}}) as port:
        peers = await asked(DnsSource("r.test", 5001, ("127.0.0.1", port)), within=ASK_WITHIN / 3)
    assert [peer.addrs[0] for peer in peers] == [f"/ip4/10.1.0.{n}/tcp/{6000 + n}" for n in (1, 2, 3)]


async def test_further_targets_are_asked_if_the_first_ones_have_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "_QUESTION_WITHIN", 0.3)
    with udp_server({**TARGETS, ("host4.test.", "A"): ["10.1.0.4"]}) as port:
        peers = await asked(DnsSource("r.test", 5001, ("127.0.0.1", port)))
    assert [peer.addrs[0] for peer in peers] == ["/ip4/10.1.0.4/tcp/6004"]


@pytest.mark.parametrize("says", [b"", b"\x00\x04junk", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 40])
async def test_a_server_that_stalls_or_answers_junk_ends_in_time(monkeypatch: pytest.MonkeyPatch, says: bytes) -> None:
    monkeypatch.setattr(dns, "_QUESTION_WITHIN", 0.3)
    with deaf_server(lambda connection: connection.sendall(says)) as port:
        assert await refused(DnsSource("spegel.test", 5001, ("127.0.0.1", port)), within=2)


async def test_no_dns_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "_QUESTION_WITHIN", 0.3)
    await refused(DnsSource("spegel.test", 5001, ("127.0.0.1", 1)))


async def test_resolv_conf_is_not_read_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(foreign_files.FileCalls, "__init__", partialmethod(foreign_files.FileCalls.__init__, 0.2))
    monkeypatch.setattr("dns.asyncresolver.Resolver", lambda **_: hangs.wait(5))
    began = trio.current_time()
    assert "no answer" in await refused(DnsSource("spegel.test", 5001), within=2)
    assert trio.current_time() - began < 2
    hangs.set()


@pytest.mark.real
async def test_consul_dns_names_the_same_three_of_many_to_everybody(tmp_path: Path) -> None:
    with ConsulAgent(tmp_path) as agent:
        async with ConsulClient(agent.settings()) as client:
            await agent.ready(client)
            for n in range(30):
                address = f"10.0.0.{n + 1}"
                body = {"ID": f"r{n}", "Name": "spegel-router", "Address": address, "Port": 7000 + n}
                await client.register_service(body)
            source = DnsSource("spegel-router.service.consul", 5001, ("127.0.0.1", agent.ports["dns"]))
            expected = [PeerInfo(None, (f"/ip4/10.0.0.{n}/tcp/{6999 + n}",)) for n in (1, 2, 3)]
            with trio.fail_after(HANG):
                while not await served(source):
                    await trio.sleep(0.02)
            for _ in range(5):
                assert await asked(source) == expected


class Authority:
    """A certificate authority that lives as long as a test."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        self.certificate = self._certificate(name, self._key, x509.BasicConstraints(ca=True, path_length=None))

    def issue(self, directory: Path, name: str) -> None:
        directory.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._certificate(subject, key, x509.SubjectAlternativeName([x509.DNSName(name)]))
        (directory / "ca.crt").write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        (directory / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / "tls.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(extension, critical=False)
            .sign(self._key, hashes.SHA256())
        )
