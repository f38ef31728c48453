# Every file that a setting names, or that lies where this program looks, as something else than a file: an error that
# names it and says what it is, and never a reader that waits or fills the memory.

from __future__ import annotations

import os
import socket
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import trio
from lab.certificates import Authority
from structlog.testing import capture_logs

from spegel_consul.commands.configuration import _authorization
from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import AccessDenied
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.endpoints.check import Status
from spegel_consul.http.basic_auth import Credentials, CredentialsError
from spegel_consul.http.tls import Tls, TlsError, TlsFiles
from spegel_consul.join.polled import SourceError
from spegel_consul.join.remembered_members import Remembered
from spegel_consul.join.sources.http_document import HttpSource
from spegel_consul.join.sources.nomad_api import NomadClient, NomadError, NomadSettings
from spegel_consul.join.sources.peer_file import FileSource
from spegel_consul.peers import RingError
from spegel_consul.preflight import containerd_files, runtime_checks
from spegel_consul.preflight.subject import Subject
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.runtimes.atomic_files import DiskError
from spegel_consul.runtimes.backup import ConfigDirectory
from spegel_consul.runtimes.configure import plan_daemon, plan_hosts
from spegel_consul.runtimes.hosts_toml import Mirroring
from spegel_consul.runtimes.mirror_targets import parse_registries, parse_targets
from spegel_consul.store.layout import LayoutStore

MIRRORING = Mirroring(parse_targets(("http://10.0.0.7:5000",)))


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path.name)
    finally:
        os.chdir(here)


def make_device(path: Path) -> None:
    os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 << 30)


def make_link_to_fifo(path: Path) -> None:
    fifo = path.with_name(f"{path.name}.fifo")
    os.mkfifo(fifo)
    path.symlink_to(fifo)


DEVICE = pytest.param(make_device, marks=pytest.mark.real)  # as for the real programs, it takes root
KINDS = [make_fifo, make_directory, make_socket, DEVICE, make_sparse, make_link_to_fifo]
SAYS = ("FIFO", "directory", "socket", "device", "too long", "more than", "symbolic link")

Reads = Callable[[Path, Callable[[Path], None]], Awaitable[str]]


def raised(kind: type[Exception], call: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def at(path: Path, make: Callable[[Path], None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    return path


async def hosts_toml(home: Path, make: Callable[[Path], None]) -> str:
    at(home / "docker.io" / "hosts.toml", make)
    registries = parse_registries(("docker.io",))
    return raised(DiskError, lambda: plan_hosts(home, registries, MIRRORING, keep_existing=True))


async def daemon_json(home: Path, make: Callable[[Path], None]) -> str:
    path = at(home / "daemon.json", make)
    return raised(DiskError, lambda: plan_daemon(path, MIRRORING, snapshotter=False))


async def record(home: Path, make: Callable[[Path], None]) -> str:
    at(home / "_backup" / "spegel-consul.json", make)
    return raised(DiskError, lambda: ConfigDirectory(home).record())


async def containerd_toml(home: Path, make: Callable[[Path], None]) -> str:
    path = at(home / "config.toml", make)
    version = containerd_files.Version(2, 1)
    return raised(containerd_files.Unreadable, lambda: containerd_files.read(path, version))


async def hosts_of_preflight(home: Path, make: Callable[[Path], None]) -> str:
    at(home / "_default" / "hosts.toml", make)
    [check] = runtime_checks._hosts(Subject("192.0.2.1", 5000), "containerd", home, None)
    assert check.status is Status.FAIL
    return check.says


async def basic_auth_file(home: Path, make: Callable[[Path], None]) -> str:
    path = at(home / "passwords", make)
    return raised(CredentialsError, lambda: Credentials(path))


async def basic_auth_directory(home: Path, make: Callable[[Path], None]) -> str:
    at(home / "username", make)
    (home / "password").write_text("secret")
    return raised(ValueError, lambda: _authorization(home))


def pair(home: Path) -> tuple[Path, Path]:
    return Authority.make(home).issue(home, "good", "127.0.0.1")


def consul_tls(name: str) -> Reads:
    async def reads(home: Path, make: Callable[[Path], None]) -> str:
        cert, key = pair(home)
        files = {"client_cert": str(cert), "client_key": str(key), name: str(at(home / "odd", make))}
        return raised(ValueError, lambda: ConsulSettings(scheme="https", **files).tls.context())

    return reads


async def consul_token(home: Path, make: Callable[[Path], None]) -> str:
    settings = ConsulSettings(token_file=str(at(home / "token", make)))
    transport = httpx.MockTransport(lambda _: httpx.Response(403, text="Permission denied"))
    async with ConsulClient(settings, transport=transport) as client:
        with pytest.raises(AccessDenied) as caught:
            await client.status_leader()
    return str(caught.value)


def nomad_tls(name: str) -> Reads:
    async def reads(home: Path, make: Callable[[Path], None]) -> str:
        cert, key = pair(home)
        files = {"client_cert": str(cert), "client_key": str(key), name: str(at(home / "odd", make))}
        return raised(ValueError, lambda: NomadSettings(address="https://127.0.0.1", **files).tls.context())

    return reads


async def nomad_token(home: Path, make: Callable[[Path], None]) -> str:
    settings = NomadSettings(token_file=str(at(home / "token", make)))
    transport = httpx.MockTransport(lambda _: httpx.Response(403, text="Permission denied"))
    async with NomadClient(settings, transport=transport) as client:
        with pytest.raises(NomadError) as caught:
            await client.request("GET", "/v1/var/x")
    return str(caught.value)


def tls(name: str) -> Reads:
    async def reads(home: Path, make: Callable[[Path], None]) -> str:
        cert, key = pair(home)
        files = {"cert": cert, "key": key, name: at(home / "odd", make)}
        return raised(TlsError, lambda: Tls(TlsFiles(**files)))

    return reads


async def bootstrap_file(home: Path, make: Callable[[Path], None]) -> str:
    source = FileSource(at(home / "peers", make))
    with pytest.raises(SourceError) as caught:
        await source.ask()
    return f"{source.name}: {caught.value}"


def bootstrap_certificates(name: str) -> Reads:
    async def reads(home: Path, make: Callable[[Path], None]) -> str:
        cert, key = pair(home)
        cert.rename(home / "tls.crt")
        key.rename(home / "tls.key")
        (home / name).unlink(missing_ok=True)
        at(home / name, make)
        return raised(ValueError, lambda: HttpSource("https://127.0.0.1/id", home))

    return reads


async def private_key(home: Path, make: Callable[[Path], None]) -> str:
    at(home / "private.key", make)
    return raised(RingError, lambda: load_or_create(home))


async def members(home: Path, make: Callable[[Path], None]) -> str:
    at(home / "peers.json", make)
    kept = Remembered(home)
    with capture_logs() as said:
        await kept.load()
    assert kept.peers == ()
    return str(said[0]["problem"])


async def index_json(home: Path, make: Callable[[Path], None]) -> str:
    at(home / "index.json", make)
    store = LayoutStore(home)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        nursery.cancel_scope.cancel()
    return str(store.problem)


READERS: dict[str, Reads] = {
    "hosts.toml": hosts_toml,
    "daemon.json": daemon_json,
    "the record in _backup": record,
    "containerd's config.toml": containerd_toml,
    "hosts.toml, in preflight": hosts_of_preflight,
    "--basic-auth-file": basic_auth_file,
    "--basic-auth-file, a directory": basic_auth_directory,
    "CONSUL_CACERT": consul_tls("cafile"),
    "CONSUL_CLIENT_CERT": consul_tls("client_cert"),
    "CONSUL_CLIENT_KEY": consul_tls("client_key"),
    "CONSUL_HTTP_TOKEN_FILE": consul_token,
    "NOMAD_CACERT": nomad_tls("cafile"),
    "NOMAD_CLIENT_CERT": nomad_tls("client_cert"),
    "NOMAD_CLIENT_KEY": nomad_tls("client_key"),
    "NOMAD_SECRETS_DIR": nomad_token,
    "--tls-cert-file": tls("cert"),
    "--tls-key-file": tls("key"),
    "--tls-ca-file": tls("ca"),
    "--file-bootstrap-path": bootstrap_file,
    "--http-bootstrap-cert-dir, ca.crt": bootstrap_certificates("ca.crt"),
    "--http-bootstrap-cert-dir, tls.crt": bootstrap_certificates("tls.crt"),
    "--http-bootstrap-cert-dir, tls.key": bootstrap_certificates("tls.key"),
    "private.key": private_key,
    "peers.json": members,
    "index.json": index_json,
}


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("reader", READERS)
async def test_what_is_no_file_is_an_error_and_never_a_hang(
    reader: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    """In a thread of its own, so that a reader that hangs fails the test and does not stop it."""
    tracemalloc.start()
    try:
        with trio.fail_after(30):
            says = await trio.to_thread.run_sync(
                lambda: trio.run(READERS[reader], tmp_path, make), abandon_on_cancel=True
            )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in says
    assert any(word in says for word in SAYS), says
    assert peak < 64 << 20


async def test_a_link_to_a_file_is_followed_where_operators_use_them(tmp_path: Path) -> None:
    """Kubernetes, Nomad's templates and certbot replace what they write by moving a link."""
    cert, key = pair(tmp_path)
    for name, target in (("live.pem", cert), ("live-key.pem", key)):
        (tmp_path / name).symlink_to(target)
    Tls(TlsFiles(tmp_path / "live.pem", tmp_path / "live-key.pem", tmp_path / "live.pem"))
    (tmp_path / "passwords").write_text("a:b\n")
    (tmp_path / "live").symlink_to(tmp_path / "passwords")
    assert Credentials(tmp_path / "live").own.startswith("Basic ")


async def test_a_key_with_a_pass_phrase_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    cert, key = pair(tmp_path)
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    assert "pass phrase" in raised(TlsError, lambda: Tls(TlsFiles(cert, key)))
