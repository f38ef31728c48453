"""The product as an image, made by a Docker of the lab from ``docker/Dockerfile``."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from lab import base_image
from lab.docker import Dockerd
from spegel_consul import __version__

ROOT = Path(__file__).parents[2]
IMAGE = f"spegel-consul:{__version__}"
"""What the documentation calls it."""


def sources(directory: Path) -> Path:
    """A copy of what an image or an archive is made of, in ``directory``, which is made."""
    shutil.copytree(ROOT / "spegel_consul", directory / "spegel_consul", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "requirements", directory / "requirements")
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, directory)
    return directory


def build(docker: Dockerd, directory: Path) -> None:
    """Build ``IMAGE``, on a base that stands in for Python's slim image."""
    base = directory / "base.tar"
    base_image.assemble(base, "spegel-consul", "pip", "setuptools")
    docker.await_ready()
    dockerfile = ROOT / "docker/Dockerfile"
    (name,) = re.findall(r"^ARG PYTHON=(\S+)$", dockerfile.read_text(), re.M)
    changes = [word for change in base_image.CHANGES for word in ("--change", change)]
    docker.docker("import", *changes, base, name, timeout=120)
    base.unlink()
    context = sources(directory / "context")
    (context / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/trim_packages.py", context / ".ci")
    docker.docker("build", "--network=none", "-t", IMAGE, "-f", dockerfile, context, timeout=180)
