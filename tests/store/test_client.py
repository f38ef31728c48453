from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from google.protobuf import any_pb2
from lab.process import HANG
from store.daemon import Containerd

from spegel_consul.oci.digest import Digest
from spegel_consul.store.containerd import conversion
from spegel_consul.store.containerd.conversion import ContentChanged, ImageChanged, ImageDeleted
from spegel_consul.store.containerd.grpc_calls import ContainerdUnavailable
from spegel_consul.store.containerd.grpc_client import ContainerdClient, why_unreachable
from spegel_consul.store.containerd.proto import containerd_pb2 as pb

DIGEST = Digest.of(b"")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="spegel-") as place:
        yield Path(place)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(16)
        yield listener


def test_reasons_say_what_to_do(place: Path) -> None:
    assert "does not exist: start containerd" in why_unreachable(place / "absent.sock")
    with listening(place / "c.sock"):
        assert "was lost" in why_unreachable(place / "c.sock")
    assert "nobody listens" in why_unreachable(place / "c.sock")
    (place / "file").touch()
    long = place / ("x" * 200)
    for path in (place, place / "file", long, place / "file" / "c.sock"):
        reason = why_unreachable(path)
        assert str(path) in reason
        assert "\n" not in reason


def test_missing_permission_is_told_apart(place: Path) -> None:
    place.chmod(0o755)
    with listening(place / "c.sock"):
        (place / "c.sock").chmod(0)
        code = (
            "import os; from pathlib import Path;"
            "from spegel_consul.store.containerd.grpc_client import why_unreachable;"
            f"os.geteuid() or os.setuid(65534); print(why_unreachable(Path({str(place / 'c.sock')!r})))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"no permission to connect to containerd's socket {place / 'c.sock'}")


async def test_where_no_thread_can_be_started_nothing_is_asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    async with ContainerdClient(place / "absent.sock", "default") as client:
        with monkeypatch.context() as patched:
            patched.setattr(trio.to_thread, "run_sync", refused)
            with pytest.raises(ContainerdUnavailable, match="can't be asked: the limit of processes is reached"):
                await client.find([DIGEST])


async def test_unavailable_names_the_socket(place: Path) -> None:
    path = place / "absent.sock"
    async with ContainerdClient(path, "default") as client:
        for call in (client.version, client.images, client.contents, client.content_root, client.namespaces):
            with pytest.raises(ContainerdUnavailable, match=str(path)):
                await call()
        with pytest.raises(ContainerdUnavailable, match=str(path)):
            await client.find([DIGEST])
        with pytest.raises(ContainerdUnavailable, match=str(path)):
            async with client.events() as events:
                await anext(events)


async def test_silent_peer_meets_the_deadline(place: Path) -> None:
    path, ended = place / "c.sock", []

    async def ask(deadline: float) -> None:
        async with ContainerdClient(path, "default", deadline=deadline) as client:
            with pytest.raises(ContainerdUnavailable, match=f"{place}.* within {deadline:g} s"):
                await client.images()
        ended.append(deadline)

    with listening(path):
        async with trio.open_nursery() as nursery:
            for deadline in (2.0, 0.2):
                nursery.start_soon(ask, deadline)
    assert ended == [0.2, 2.0]


async def test_peer_that_is_no_containerd(place: Path) -> None:
    def chatter(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

    with listening(place / "c.sock") as listener:
        thread = threading.Thread(target=chatter, args=(listener,), daemon=True)
        thread.start()
        async with ContainerdClient(place / "c.sock", "default", deadline=2) as client:
            with pytest.raises(ContainerdUnavailable, match=str(place)):
                await client.images()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


async def test_cancelled_calls_end_at_once(place: Path) -> None:
    with listening(place / "c.sock"):
        async with ContainerdClient(place / "c.sock", "default", deadline=HANG) as client, client.events() as events:
            began = time.monotonic()
            with trio.move_on_after(0.1) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.images)
                    nursery.start_soon(client.contents)
                    nursery.start_soon(anext, events)
            assert scope.cancelled_caught
            assert time.monotonic() - began < HANG / 2, "they waited for the deadline"


async def test_loop_goes_on_while_a_call_waits(place: Path) -> None:
    with listening(place / "c.sock") as listener:
        async with ContainerdClient(place / "c.sock", "default", deadline=HANG) as client:
            turns = 0
            async with trio.open_nursery() as nursery:

                async def call() -> None:
                    with pytest.raises(ContainerdUnavailable, match="was lost"):
                        await client.images()
                    assert turns == 50

                nursery.start_soon(call)
                connection, _ = await trio.to_thread.run_sync(listener.accept)
                with connection:
                    for _ in range(50):
                        await trio.sleep(0.005)
                        turns += 1
                # the connection and with it the call end because the loop has gone on


@pytest.mark.real
async def test_what_containerd_says_of_itself(containerd: Containerd) -> None:
    async with ContainerdClient(containerd.socket, "default") as client:
        assert (await client.version()).startswith(containerd.version)
        assert await client.content_root() == containerd.content
        assert await client.image("docker.io/library/absent:v1") is None
        assert await client.find([DIGEST]) == ()


def test_sources_are_registry_and_repository() -> None:
    labels = {
        "containerd.io/distribution.source.docker.io": "library/app,library/other",
        "containerd.io/distribution.source.localhost:5000": "team/app",
        "containerd.io/distribution.source.": "nobody",
        "containerd.io/distribution.source.quay.io": "",
        "containerd.io/uncompressed": "sha256:…",
    }
    assert conversion.sources(labels) == (
        "docker.io/library/app",
        "docker.io/library/other",
        "localhost:5000/team/app",
    )


def envelope(topic: str, payload: bytes, namespace: str = "default") -> pb.Envelope:
    return pb.Envelope(topic=topic, namespace=namespace, event=any_pb2.Any(type_url="any", value=payload))


def test_events_of_interest() -> None:
    image = pb.ImageEvent(name="docker.io/library/app:v1").SerializeToString()
    content = pb.ContentEvent(digest=DIGEST, size=5).SerializeToString()
    name = "docker.io/library/app:v1"
    assert conversion.event(envelope("/images/create", image), "default") == ImageChanged(name)
    assert conversion.event(envelope("/images/update", image), "default") == ImageChanged(name)
    assert conversion.event(envelope("/images/delete", image), "default") == ImageDeleted(name)
    assert conversion.event(envelope("/content/create", content), "default") == ContentChanged(DIGEST)
    assert conversion.event(envelope("/content/delete", content), "default") == ContentChanged(DIGEST)


@pytest.mark.parametrize(
    "odd",
    [
        envelope("/images/create", b"\xff\xff\xff"),
        envelope("/content/create", pb.ContentEvent(digest="md5:abc").SerializeToString()),
        envelope("/content/create", b""),
        envelope("/images/exploded", b"x"),
        envelope("/images/create", b"", namespace="other"),
        pb.Envelope(),
    ],
)
def test_odd_events_are_ignored(odd: pb.Envelope) -> None:
    assert conversion.event(odd, "default") is None


def test_odd_records_are_ignored() -> None:
    good = pb.Descriptor(digest=DIGEST, size=1, media_type="text/plain")
    assert conversion.image_record(pb.Image(name="docker.io/a/b:v1", target=good)) is not None
    for name in (DIGEST, Digest.of(b"", "sha384"), Digest.of(b"", "sha512")):
        assert conversion.image_record(pb.Image(name=name, target=good)) is None
    for wrong in ("text/plain\r\nContent-Length: 0", "multipart/mixed; boundary=x", ""):
        target = pb.Descriptor(digest=good.digest, size=5, media_type=wrong)
        record = conversion.image_record(pb.Image(name="docker.io/a/b:v1", target=target))
        assert record is not None
        assert record.target.media_type == "application/octet-stream", "it is sent in a header field"
    assert conversion.image_record(pb.Image(name="docker.io/a/b:v1")) is None
    assert conversion.image_record(pb.Image(name="docker.io/a/b:v1", target=pb.Descriptor(digest="x"))) is None
    assert conversion.content(pb.Info(digest="blake3:00")) is None
