# The daemons come from .ci/install-real-parts, unpacked next to each other because several versions of the same
# daemon are tested.  What is missing is an error and never a skip: a test that didn't run proves nothing.

"""Where the real binaries are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

CONTAINERDS = ("16", "17", "21")
DOCKERS = ("26", "28")

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
ROOT = Path(os.environ.get("SPEGEL_REAL_PARTS") or _CACHE / "spegel-consul-ci")


def _part(path: Path) -> Path:
    if not path.is_file():
        raise RuntimeError(f"{path} is missing: run .ci/install-real-parts")
    return path


def consul() -> Path:
    return _part(ROOT / "consul/usr/bin/consul")


def busybox() -> Path:
    return _part(ROOT / "busybox/bin/busybox")


def crane() -> Path:
    return _part(ROOT / "tools/usr/bin/crane")


def prometheus() -> Path:
    return _part(ROOT / "prometheus/usr/bin/prometheus")


def podman(binary: str = "podman") -> Path:
    """``podman``, ``buildah`` or ``conmon``."""
    return _part(ROOT / "podman/usr/bin" / binary)


def podman_libraries() -> Path:
    """The directory of the libraries that podman came with."""
    found = sorted((ROOT / "podman/usr/lib").glob("*-linux-gnu"))
    if not found:
        raise RuntimeError(f"{ROOT / 'podman'} has no libraries: run .ci/install-real-parts")
    return found[0]


def runc() -> Path:
    return _part(ROOT / "runc/usr/sbin/runc")


def containerd(version: str, binary: str = "containerd") -> Path:
    """``containerd`` or ``ctr`` of version 16, 17 or 21."""
    if version not in CONTAINERDS:
        raise ValueError(f"no containerd {version!r}, only {CONTAINERDS}")
    return _part(ROOT / f"ctrd{version}/usr/bin" / binary)


def faketime() -> Path:
    """A library that, loaded into a program, gives it another time."""
    return _part(ROOT / "faketime/libfaketime.so.1")


def node_modules() -> Path:
    """The packages of ``tests/ring/js``."""
    if not (ROOT / "js/node_modules/libp2p").is_dir():
        raise RuntimeError(f"{ROOT / 'js/node_modules'} is missing: run .ci/install-real-parts")
    return ROOT / "js/node_modules"


def dockerd(version: str) -> Path:
    if version not in DOCKERS:
        raise ValueError(f"no docker {version!r}, only {DOCKERS}")
    return _part(ROOT / f"docker{version}/usr/sbin/dockerd")


def docker(version: str) -> Path:
    return _part(dockerd(version).parents[1] / "bin/docker")


def buildx() -> Path:
    return _part(ROOT / "buildx/usr/libexec/docker/cli-plugins/docker-buildx")


def system(name: str) -> str:
    """A program that the machine itself provides, such as ``dig``."""
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is missing: run .ci/install-real-parts")
    return found


def path(*binaries: Path) -> str:
    """A PATH on which the directories of ``binaries`` come first."""
    return os.pathsep.join([*(str(binary.parent) for binary in binaries), os.environ.get("PATH", os.defpath)])


def check() -> None:
    """Raise RuntimeError unless everything that the lab starts is here."""
    if os.geteuid() != 0:
        raise RuntimeError("the tests with real parts make network namespaces: run them as root")
    consul(), busybox(), crane(), podman(), podman("buildah"), podman_libraries(), runc(), node_modules()
    for version in CONTAINERDS:
        containerd(version), containerd(version, "ctr")
    for version in DOCKERS:
        dockerd(version), docker(version)
    for name in (
        "ip",
        "iptables",
        "iptables-restore",
        "dig",
        "nsenter",
        "unshare",
        "docker-registry",
        "skopeo",
        "node",
    ):
        system(name)
