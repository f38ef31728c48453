"""The way by which containerd is asked to pull, and what it may answer."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from google.protobuf import empty_pb2
from runtimes.test_docker_pulls import docker, says

from spegel_consul.oci.platforms import this_architecture
from spegel_consul.oci.reference import Reference
from spegel_consul.runtimes.pulls import CantPull, Runtime
from spegel_consul.runtimes.pulls.containerd_pulls import ContainerdPulls
from spegel_consul.runtimes.pulls.node_runtimes import NodeRuntimes
from spegel_consul.store.containerd.proto import containerd_pb2 as pb

CRI = "/runtime.v1.ImageService/PullImage"
TRANSFER = "/containerd.services.transfer.v1.Transfer/Transfer"
HOSTS = Path("/etc/containerd/certs.d")
APP = Reference.parse("quay.io/team/app:v1")
NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "quay.io/team/app:v1: not\nfound")


class Fake(grpc.GenericRpcHandler):
    """A containerd that knows ``known``: methods with the answer, or the status and details of the refusal."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.known: dict[str, Any] = {}
        self.asked: list[tuple[str, str, bytes]] = []
        self.present: list[str] = []
        self.began, self.cancelled = threading.Event(), threading.Event()
        self.version("2.1.4")

    def version(self, text: str) -> None:
        self.known["/containerd.services.version.v1.Version/Version"] = pb.VersionResponse(version=text)

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        if method.endswith("Namespaces/List"):
            self.known[method] = pb.ListNamespacesResponse(
                namespaces=[pb.Namespace(name=each) for each in self.present]
            )
        if method not in self.known:
            return None

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            namespace = dict(context.invocation_metadata())["containerd-namespace"]
            self.asked.append((method, str(namespace), request))
            found = self.known[method]
            if found == "hangs":
                context.add_callback(self.cancelled.set)
                self.began.set()
                self.cancelled.wait(30)
                return b""
            if isinstance(found, tuple):
                context.abort(*found)
            return bytes(found.SerializeToString())

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def containerd() -> Iterator[Fake]:
    with tempfile.TemporaryDirectory(prefix="spegel-") as place, ThreadPoolExecutor(8) as threads:
        fake = Fake(Path(place) / "c.sock")
        server = grpc.server(threads, handlers=[fake])
        server.add_insecure_port(f"unix:{fake.socket}")
        server.start()
        yield fake
        fake.cancelled.set()
        server.stop(None).wait()


async def pull(fake: Fake, namespace: str, within: float = 60) -> None:
    with trio.fail_after(30):
        await ContainerdPulls(fake.socket, namespace, HOSTS).pull(APP, within, lambda _: None)


async def test_the_cri_pulls_in_its_namespace(containerd: Fake) -> None:
    containerd.known |= {CRI: pb.PullImageResponse(image_ref="x"), TRANSFER: empty_pb2.Empty()}
    await pull(containerd, "k8s.io")
    [(method, _, request)] = containerd.asked
    assert method == CRI
    assert pb.PullImageRequest.FromString(request).image.image == "quay.io/team/app:v1"


@pytest.mark.parametrize("namespace", ["k8s.io", "default", "nomad"])
async def test_the_transfer_service_pulls_in_all_others_and_without_the_cri(containerd: Fake, namespace: str) -> None:
    containerd.known[TRANSFER] = empty_pb2.Empty()
    await pull(containerd, namespace)
    method, asked, request = containerd.asked[-1]
    assert (method, asked) == (TRANSFER, namespace)
    transfer = pb.TransferRequest.FromString(request)
    assert transfer.source.type_url == "containerd.types.transfer.OCIRegistry"
    source = pb.OCIRegistry.FromString(transfer.source.value)
    assert (source.reference, source.resolver.host_dir) == ("quay.io/team/app:v1", str(HOSTS))
    assert transfer.destination.type_url == "containerd.types.transfer.ImageStore"
    destination = pb.ImageStore.FromString(transfer.destination.value)
    assert destination.name == "quay.io/team/app:v1"
    assert [each.architecture for each in destination.platforms] == [this_architecture()]
    assert len(destination.unpacks) == 1


@pytest.mark.parametrize("version", ["1.6.24", "v1.7.28"])
async def test_a_transfer_that_would_pass_by_the_mirror_is_not_asked_for(containerd: Fake, version: str) -> None:
    containerd.known[TRANSFER] = empty_pb2.Empty()
    containerd.version(version)
    for namespace, lacks in (("default", ""), ("k8s.io", "this containerd has no CRI plugin, and ")):
        with pytest.raises(CantPull, match=f"^{lacks}the transfer API of containerd {version} does not") as caught:
            await pull(containerd, namespace)
        assert caught.value.left_out
    assert TRANSFER not in [method for method, _, _ in containerd.asked]


async def test_no_transfer_service(containerd: Fake) -> None:
    containerd.version("main-build")
    with pytest.raises(CantPull, match="the transfer service of containerd main-build is disabled") as caught:
        await pull(containerd, "default")
    assert caught.value.left_out


@pytest.mark.parametrize("namespace", ["k8s.io", "default"])
async def test_refusals_say_why(containerd: Fake, namespace: str) -> None:
    containerd.known |= {CRI: NOT_FOUND, TRANSFER: NOT_FOUND}
    with pytest.raises(CantPull, match="^quay.io/team/app:v1: not found$") as caught:
        await pull(containerd, namespace)
    assert caught.value.missing
    refused = (grpc.StatusCode.UNKNOWN, "no space left on device")
    containerd.known |= {CRI: refused, TRANSFER: refused}
    with pytest.raises(CantPull, match="no space left on device") as caught:
        await pull(containerd, namespace)
    assert not caught.value.missing


async def test_a_pull_that_hangs_ends_in_time(containerd: Fake) -> None:
    containerd.known[CRI] = "hangs"
    with pytest.raises(CantPull, match=r"has not answered within 0\.5 s"):
        await pull(containerd, "k8s.io", within=0.5)


async def test_a_cancelled_pull_is_cancelled_in_containerd(containerd: Fake) -> None:
    containerd.known[CRI] = "hangs"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull, containerd, "k8s.io")
        assert await trio.to_thread.run_sync(containerd.began.wait, 20)
        nursery.cancel_scope.cancel()
    assert await trio.to_thread.run_sync(containerd.cancelled.wait, 20)


async def test_no_containerd_there(containerd: Fake) -> None:
    for act in (choose, lambda fake: pull(fake, "k8s.io")):
        containerd.socket = Path("/nowhere/c.sock")
        with pytest.raises(CantPull, match="does not exist: start containerd"):
            await act(containerd)


async def choose(
    fake: Fake, *namespaces: str, docker_sock: Path = Path("/nowhere/d.sock"), image: str = "app:v1"
) -> list[Runtime]:
    runtimes = NodeRuntimes(lambda: fake.socket, namespaces or ("moby", "k8s.io", "default"), docker_sock, HOSTS)
    return await runtimes.choose(Reference.parse(image))


async def test_namespaces_that_exist_are_those_in_use(containerd: Fake) -> None:
    containerd.present = ["default", "k8s.io", "other"]
    assert [each.name for each in await choose(containerd)] == ["containerd k8s.io", "containerd default"]
    assert [each.name for each in await choose(containerd, "default")] == ["containerd default"]


async def test_a_node_on_which_nothing_was_pulled(containerd: Fake) -> None:
    assert [each.name for each in await choose(containerd)] == ["containerd k8s.io"]
    assert [each.name for each in await choose(containerd, "nomad", "default")] == ["containerd nomad"]


INFO = {"ServerVersion": "28.5.2", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
MIRRORS = {"RegistryConfig": {"Mirrors": ["http://10.0.0.1:5000/"]}}


@pytest.mark.parametrize(
    ("info", "image", "reason"),
    [
        (INFO, "quay.io/team/app:v1", None),
        ({**INFO, "DriverStatus": []}, "app:v1", "does not keep its images in containerd"),
        ({**INFO, **MIRRORS, "ServerVersion": "26.1"}, "app:v1", None),
        ({**INFO, **MIRRORS, "ServerVersion": "26.1"}, "quay.io/team/app:v1", "does not ask the mirror for quay.io"),
        ({**INFO, "ServerVersion": "26.1"}, "app:v1", "does not ask the mirror for docker.io"),
    ],
)
async def test_a_docker_is_asked_if_it_would_ask_the_mirror(
    containerd: Fake, tmp_path: Path, info: dict[str, object], image: str, reason: str | None
) -> None:
    containerd.present = ["moby"]
    sock = containerd.socket.with_name("d.sock")
    async with docker(sock, says(info)):
        [found] = await choose(containerd, docker_sock=sock, image=image)
    assert found.name == "docker"
    if reason is not None:
        with pytest.raises(CantPull, match=reason) as caught:
            await found.pull(APP, 1, lambda _: None)
        assert caught.value.left_out


async def test_a_docker_that_is_away_is_left_out(containerd: Fake) -> None:
    containerd.present = ["moby", "k8s.io"]
    docker_runtime, cri = await choose(containerd)
    assert cri.name == "containerd k8s.io"
    with pytest.raises(CantPull, match="/nowhere/d.sock does not answer") as caught:
        await docker_runtime.pull(APP, 1, lambda _: None)
    assert caught.value.left_out
