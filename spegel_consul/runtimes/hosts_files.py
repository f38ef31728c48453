"""The hosts.toml files below a runtime's directory, as the runtime reads them. Their edits are those of hosts_toml.

A new question about files that exist belongs here.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from spegel_consul.disk import foreign_files
from spegel_consul.oci.filters import registry_host

_NO_REGISTRY = frozenset({"_default", "_backup"})
_DOCKER_HUB = "registry-1.docker.io"


def files(base: Path) -> list[Path]:
    """The hosts.toml files that a runtime reads, that of _default first, because it is for most registries."""
    found = base.glob("*/hosts.toml") if os.path.isdir(base) else ()  # noqa: PTH112  # unlike Path's, it never raises
    return sorted(
        (file for file in found if file.parent.name != "_backup"),
        key=lambda file: (file.parent.name != "_default", file),
    )


def registry_of(directory: str) -> str:
    """The registry of a directory's name, which may have a port between underscores (core/remotes/docker/config)."""
    host, _, port = directory.removesuffix("_").rpartition("_")
    return f"{host}:{port}" if host and port.isdigit() and directory.endswith("_") else directory


def shadowing(base: Path, mirrored: Collection[str]) -> list[str]:
    """The registries with a directory of their own, so that runtimes do not read ``_default`` for them.

    Those of ``mirrored`` are left out, and directories that no registry has, such as lost+found. Raises OSError.
    """
    names = {path.name for path in base.iterdir() if path.is_dir()} if base.is_dir() else set()
    return sorted(filter(_is_registry, {registry_of(name) for name in names - _NO_REGISTRY}.difference(mirrored)))


def _is_registry(name: str) -> bool:
    try:
        return bool(registry_host(name))
    except ValueError:
        return False


def hosts(file: Path) -> list[str]:
    """The URLs of the hosts that a file names beside the registry itself. Raises OSError or ValueError."""
    named = tomllib.loads(foreign_files.read(file, foreign_files.CONFIG_SIZE).decode()).get("host", {})
    registry = registry_of(file.parent.name)
    own = {_address(registry), _address(_DOCKER_HUB if registry == "docker.io" else registry)}
    return [url for url in named if _address(url) not in own] if isinstance(named, dict) else []


def _address(url: str) -> tuple[str | None, int | None]:
    """The host, and a port that is not of http or https. Raises ValueError."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    return parts.hostname, parts.port if parts.port not in (80, 443) else None


def capabilities(file: Path) -> set[str]:
    """The capabilities of all hosts of a file; none are known of a file that can't be read."""
    try:
        hosts = tomllib.loads(foreign_files.read(file, foreign_files.CONFIG_SIZE).decode()).get("host", {})
        return {each for host in hosts.values() for each in host.get("capabilities", ())}
    except (OSError, ValueError, TypeError, AttributeError):
        return set()
