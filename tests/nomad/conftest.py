"""Machines with Nomad, and the product's image on all of them."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab import documents, parts, product
from lab.cluster import Cluster
from lab.consul import ConsulOptions
from lab.process import until
from lab.run_dir import RunDir

from spegel_consul import __version__

from .agent import IMAGE, PAUSE, Machine, version

MakeMachines = Callable[..., list[Machine]]


@pytest.fixture(scope="session")
def images() -> Iterator[RunDir]:
    """A directory for what is made once: the product's image, as an archive."""
    parts.check()
    with RunDir() as directory:
        yield directory


@pytest.fixture(scope="session")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository, for a Nomad before 1.8 a copy whose jobs are without the blocks that jobs/README.md names."""
    if version() >= (1, 8):
        return documents.ROOT
    copy = tmp_path_factory.mktemp("top")
    for name in ("jobs", "consul"):
        shutil.copytree(documents.ROOT / name, copy / name)
    (line,) = [line for line in documents.lines("jobs/README.md") if line.startswith("sed ")]
    subprocess.run(["bash", "-c", line], cwd=copy / "jobs", check=True, timeout=20)
    return copy


@pytest.fixture
def machines(images: RunDir) -> Iterator[MakeMachines]:
    """``machines(count, consul=True or options, acl=False)``: Nomads of one cluster, each Docker with the image."""
    with ExitStack() as stack:

        def make(count: int, *, consul: ConsulOptions | bool = True, acl: bool = False) -> list[Machine]:
            lab = stack.enter_context(Cluster(count, consul=consul, containerd=None))
            made = [Machine(node, lab[0], acl=acl) for node in lab]
            for machine in made:
                machine.docker.await_ready()
            load(made, images.path)
            for machine in made:
                stack.callback(machine.kill)
                machine.start()
            if not acl:  # else nobody may ask yet
                await_clients(made)
            return made

        yield make


def await_clients(machines: list[Machine]) -> None:
    """Wait until every Nomad client is ready for jobs."""
    first = machines[0]
    assert first.nomad is not None
    first.nomad.until(lambda: len(first.clients()) == len(machines), timeout=60, what="Nomad's clients are ready")


def load(machines: list[Machine], directory: Path) -> None:
    """Give each Docker the product's image, which the first one that needs it builds."""
    tar, name = directory / "image.tar", f"{IMAGE}:{__version__}"
    if not tar.exists():
        docker = machines[0].docker
        product.build(docker, machines[0].node.dir)
        docker.docker("tag", product.IMAGE, name)
        docker.docker("save", "-o", tar, name, timeout=120)
    root = directory / "pause.tar"
    if not root.exists():
        with tarfile.open(root, "w") as archive:
            archive.add(parts.busybox(), "busybox")
    for machine in machines:
        machine.docker.docker("import", "--change", 'CMD ["/busybox", "sleep", "86400"]', root, PAUSE, timeout=60)
        if name not in machine.docker.images():
            machine.docker.docker("load", "-i", tar, timeout=120)
        until(lambda machine=machine: name in machine.docker.images(), timeout=10, what="the image is there")
