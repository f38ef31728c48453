# The upstream's line is slow, so that there is time to look.  The store reads what the runtime writes while it pulls;
# no sidecar takes part.

"""What the store sees of a pull in progress, with every runtime that writes its downloads where they can be read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import pytest
import trio
from conformance.downloads import opened
from conformance.store import eventually, running
from lab import thorough
from lab.cluster import Cluster, MakeCluster, Node
from lab.containerd import PullError
from lab.docker import NAMESPACE as DOCKER_NAMESPACE
from lab.image import MIB, Image, MakeImage

from spegel_consul.oci.digest import Digest
from spegel_consul.store import Store
from spegel_consul.store.containerd.awaited_content import PAUSES
from spegel_consul.store.containerd.containerd_store import ContainerdStore
from spegel_consul.zerocopy.growing_file import GrowingFile

pytestmark = pytest.mark.real

LAYERS = [4 * MIB, 24 * MIB]
PARALLEL = """
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = 4
  concurrent_layer_fetch_buffer = 4194304
"""
ALL_RUNTIMES = ["1.6", "1.7", "2.1", "2.1 in parallel", "Docker 28"]
RUNTIMES = ALL_RUNTIMES if thorough.ALL else ["1.7", "Docker 28"]  # `make faults` takes all
ABORTED_WITHIN = 20.0  # seconds


class Machine:
    """A node with one runtime, and the image that only the upstream has."""

    def __init__(self, lab: Cluster, runtime: str, app: Image) -> None:
        self.lab, self.app = lab, app
        self.upstream = lab.start_registry(0)
        self.upstream.push(app)
        self.is_docker = runtime == "Docker 28"
        self.node: Node = lab[1]
        if self.is_docker:
            docker = self.node.add_docker("28")
            docker.await_ready()
            docker.mirror(registry=self.upstream.host, server=self.upstream.url)
            return
        extra = PARALLEL if runtime.endswith("parallel") else ""
        containerd = self.node.add_containerd(runtime[:3].replace(".", ""), extra=extra)
        containerd.await_ready()
        containerd.mirror(registry=self.upstream.host, server=self.upstream.url)

    def store(self) -> Store:
        """A store that lists only at its start."""
        if self.is_docker:
            socket, namespace = self.node.docker.containerd_sock, DOCKER_NAMESPACE
        else:
            socket, namespace = self.node.containerd.sock, "k8s.io"
        return ContainerdStore(lambda: socket, namespace, relist_interval=1000)

    def pull(self, timeout: float = 60) -> bool:
        """Whether the pull succeeds."""
        try:
            if self.is_docker:
                self.node.docker.pull(self.app.name, timeout=timeout)
            else:
                self.node.containerd.pull_cri(self.app.name, timeout=timeout)
        except PullError:
            return False
        return True

    def limit_rate(self, mbit: int) -> None:
        self.lab[0].port.limit_rate(mbit)


@pytest.fixture(params=RUNTIMES)
def machine(request: pytest.FixtureRequest, cluster: MakeCluster, image: MakeImage) -> Machine:
    lab = cluster(2, consul=False, containerd=[None, None])
    app = image(f"{lab[0].ip}:5050/library/app:v1", layers=LAYERS, seed=31)
    return Machine(lab, request.param, app)


async def test_a_pull_is_seen_while_it_lasts(machine: Machine) -> None:
    small, large = map(Digest, machine.app.amd64.layers[-2:])
    machine.limit_rate(30)
    results: list[bool] = []

    async def pull() -> None:
        results.append(await trio.to_thread.run_sync(machine.pull))

    async with running(machine.store()) as store, trio.open_nursery() as nursery:
        await trio.sleep(1.1)  # past the listing that follows a start
        assert await store.at_work() is None
        nursery.start_soon(pull)
        (await opened(store, small)).close()
        with await opened(store, large) as file:
            expected = machine.app.blob(large).read_bytes()
            assert file.total == len(expected)
            sizes, works, hasher = {0}, set(), hashlib.sha256()
            announced, last_seen = False, trio.current_time()
            with trio.fail_after(60):
                while not file.complete:
                    size = file.size()
                    hasher.update(os.pread(file.fd, size - max(sizes), max(sizes)))
                    sizes.add(size)
                    works.add(await store.at_work())
                    if small in (await store.downloads()).growing:
                        last_seen = trio.current_time()
                    if not announced and store.describe(small) is not None:
                        announced = True
                        assert not results
                        assert store.resolve(machine.app.name) is None
                    assert not file.abandoned()
                    await trio.sleep(0.02)
            hasher.update(os.pread(file.fd, len(expected), max(sizes)))
            assert f"sha256:{hasher.hexdigest()}" == large
            assert len(sizes) > 5, "it was complete at once"
            assert len(works) > 5, "the runtime's progress was not seen"
            # the large layer may take nearly all of the line, so that the small one ends last
            ended_for = trio.current_time() - last_seen
            assert announced or ended_for < sum(PAUSES), f"the small layer had ended {ended_for:.1f} s before"
        assert await _content(store, large) == expected
        await eventually(lambda: results)
        assert results == [True]
        await eventually(lambda: store.resolve(machine.app.name))
        with trio.fail_after(ABORTED_WITHIN):
            while await store.at_work() is not None:
                await trio.sleep(0.05)


async def test_an_aborted_pull_is_noticed_or_goes_on(machine: Machine) -> None:
    large = Digest(machine.app.amd64.layers[-1])
    machine.limit_rate(20)
    async with running(machine.store()) as store, trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, machine.pull, 6)
        with await opened(store, large) as file:
            await eventually(lambda: file.size() >= MIB)
            if machine.is_docker:
                await _stands_still(file)
            else:
                await _holds(file.abandoned)
            kept = file.size()
            assert not file.complete
            found = await store.downloading(large)
            if not machine.is_docker:
                assert found is None
            else:
                # Docker keeps what it has and goes on from there
                assert found is not None
                with found:
                    assert (found.size(), found.total, found.abandoned()) == (kept, file.total, False)
        machine.limit_rate(0)
        machine.upstream.forget()
        assert await trio.to_thread.run_sync(machine.pull)
        assert await _content(store, large) == machine.app.blob(large).read_bytes()
        if machine.is_docker:
            assert {status for asked, status in machine.upstream.answers() if large in asked} == {206}


async def _content(store: Store, digest: Digest) -> bytes:
    """What the store has of ``digest``, once it knows that the download has ended."""
    await eventually(lambda: store.describe(digest) is not None)
    content = store.describe(digest)
    assert content is not None
    async with store.open(digest) as blob:
        return b"".join([piece async for piece in blob.chunks(0, content.size)])


async def _holds(condition: Callable[[], bool]) -> None:
    with trio.fail_after(ABORTED_WITHIN):
        while not condition():
            await trio.sleep(0.05)


async def _stands_still(file: GrowingFile) -> None:
    """Wait until the file has not grown for three seconds, in which it gets two MiB at the least."""
    with trio.fail_after(2 * ABORTED_WITHIN):
        size, since = file.size(), trio.current_time()
        while trio.current_time() - since < 3:
            await trio.sleep(0.05)
            if file.size() != size:
                size, since = file.size(), trio.current_time()
