# A builder of the driver docker-container is a container of the node's Docker.  Its image is made of the BuildKit that
# is here, because tests reach no registry of images; a build without RUN starts no container in it.

"""buildx on one node, whose builders are containers."""

from __future__ import annotations

import tarfile
from contextlib import suppress
from pathlib import Path

from lab import buildkit, parts
from lab.docker import Dockerd
from lab.process import Failed

IMAGE = "buildkit:lab"
_LINKS = {"bin/sh": "busybox", "bin/cat": "busybox"}


class Buildx:
    """buildx for the daemon ``docker``, with a client's configuration of its own."""

    def __init__(self, docker: Dockerd, directory: Path) -> None:
        self._docker = docker
        self._dir = directory
        plugins = docker.client / "cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / "docker-buildx").symlink_to(parts.buildx())
        self._builders: list[str] = []

    def load_image(self) -> None:
        """Give the daemon the image for builders."""
        tar = self._dir / "buildkit.tar"
        tar.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(tar, "w") as out:
            for directory in ("etc", "run", "tmp", "var/lib"):
                member = tarfile.TarInfo(directory)
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                out.addfile(member)
            for program in (buildkit.program("buildkitd"), buildkit.program("buildctl"), parts.runc()):
                out.add(program, f"usr/bin/{program.name}")
            out.add(parts.busybox(), "bin/busybox")
            for name, target in _LINKS.items():
                member = tarfile.TarInfo(name)
                member.type, member.linkname = tarfile.SYMTYPE, target
                out.addfile(member)
        changes = ("--change=ENV PATH=/usr/bin:/bin", '--change=ENTRYPOINT ["buildkitd"]')
        self._docker.docker("import", *changes, tar, IMAGE, timeout=60)

    def create(self, *words: str, timeout: float = 60) -> None:
        """``docker buildx create`` with ``words`` and this image, and wait until the builder runs."""
        self._builders.append(words[words.index("--name") + 1])
        self._buildx("create", *words, f"--driver-opt=image={IMAGE}", "--bootstrap", timeout=timeout)

    def build(self, directory: Path, timeout: float = 60) -> None:
        """Build the Dockerfile in ``directory`` with the builder that is used."""
        output = f"--output=type=oci,dest={self._dir / 'built.tar'}"
        self._buildx("build", "--progress=plain", "--no-cache", output, str(directory), timeout=timeout)

    def remove(self) -> None:
        """Remove all builders, with all that they have pulled."""
        while self._builders:
            self._buildx("rm", "--force", self._builders.pop(), timeout=60)

    def end(self) -> None:
        """Remove the builders' containers, which would outlive the daemon."""
        with suppress(Failed):
            self.remove()

    def _buildx(self, *words: str, timeout: float) -> str:
        return self._docker.docker("buildx", *words, timeout=timeout)
