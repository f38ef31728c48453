"""Checks of containerd's configuration. No I/O except in ``load``.

containerd does not report its configuration, so its file is read, with the files that it imports. The table of a
setting depends on the version of the file: ``plugins."io.containerd.grpc.v1.cri"`` up to version 2,
``plugins."io.containerd.cri.v1.images"`` in version 3.

From containerd 2.1 on, the CRI pulls images through the transfer service. It reads config_path as one directory, while
the older client reads it as a list with colons. Some distributions ship a list, and then containerd ignores every
hosts.toml without a message (containerd issue 12415, Spegel issue 1272).

A check of a new setting belongs here, as a field of ``CriSettings`` and a rule in ``checks_of``.
"""

from __future__ import annotations

import glob
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spegel_consul.disk import foreign_files
from spegel_consul.endpoints.check import Check, fail, ok, warn

_CRI, _IMAGES = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"
_MOST_IMPORTS = 64


class Unreadable(Exception):
    """The configuration can't be read; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class CriSettings:
    """The settings that are checked. ``config_path``: None if it is not set; ``table``: the plugin's table for it."""

    enabled: bool = True
    config_path: str | None = None
    inline_mirrors: bool = False
    discard: bool = False
    local_pull: bool = False
    table: str = _CRI

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> CriSettings:
        """From a parsed file; values of the wrong type count as not set."""
        table = _IMAGES if document.get("version") == 3 else _CRI
        plugins = _table(document, "plugins")
        images = _table(plugins, table)
        registry = _table(images, "registry")
        where_discard = images if table == _IMAGES else _table(images, "containerd")
        path = registry.get("config_path")
        disabled = document.get("disabled_plugins", [])
        return cls(
            enabled=not {"cri", _CRI, _IMAGES}.intersection(disabled if isinstance(disabled, list) else []),
            config_path=path if isinstance(path, str) and path else None,
            inline_mirrors=bool(_table(registry, "mirrors")),
            discard=where_discard.get("discard_unpacked_layers") is True,
            local_pull=images.get("use_local_image_pull") is True,
            table=table,
        )


def load(path: Path) -> dict[str, Any]:
    """The file and its imports, merged; empty without a file, as in containerd. Raises Unreadable."""
    merged: dict[str, Any] = {}
    todo, seen = [path], set[Path]()
    while todo and len(seen) < _MOST_IMPORTS:
        file = todo.pop(0)
        if file in seen:
            continue
        seen.add(file)
        try:
            document = tomllib.loads(foreign_files.read(file, foreign_files.CONFIG_SIZE).decode())
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as exc:
            raise Unreadable(f"{file} can't be read: {getattr(exc, 'strerror', None) or exc}") from None
        imports = document.pop("imports", [])
        _merge(merged, document)
        for pattern in imports if isinstance(imports, list) else []:
            todo += sorted(Path(name) for name in glob.glob(str(file.parent / str(pattern))))  # noqa: PTH207
    return merged


def checks_of(settings: CriSettings, version: str, hosts: Path, file: Path) -> Iterator[Check]:
    """``hosts``: the directory with the hosts.toml files; ``version``: of the daemon, empty if it is not known."""
    if not settings.enabled:
        yield ok("containerd-config", f"the CRI is disabled in {file}, so containerd reads no hosts.toml")
        return
    yield from _config_path(settings, version, hosts, file)
    if settings.discard:
        yield fail(
            "discard-unpacked-layers",
            "containerd discards layers once they are unpacked, so this node has no layers for its peers",
            f"# {file}\n{_header(settings, 'containerd')}\n  discard_unpacked_layers = false",
        )
    else:
        yield ok("discard-unpacked-layers", "layers are kept after they are unpacked")


def _config_path(settings: CriSettings, version: str, hosts: Path, file: Path) -> Iterator[Check]:
    fix = f'# {file}, then restart containerd\n{_header(settings, "registry")}\n  config_path = "{hosts}"'
    name = "config-path"
    lists_by_default = _at_least(version, 2, 2)
    path = settings.config_path
    if path is None and settings.inline_mirrors:
        yield fail(name, f"{file} has registry.mirrors, which exclude config_path: move them to {hosts}", fix)
    elif path is None and lists_by_default:
        yield warn(name, "config_path has its default, a list, which containerd's transfer service misreads", fix)
    elif path is None:
        yield fail(name, "config_path is not set, so the CRI reads no hosts.toml and never asks a mirror", fix)
    elif str(hosts) not in path.split(":"):
        yield fail(name, f"the CRI reads {path} and not {hosts}", fix)
    elif ":" in path and _at_least(version, 2, 1) and not settings.local_pull:
        yield fail(
            name,
            f"containerd {version} pulls through its transfer service, which takes {path} for one directory"
            " and so ignores every hosts.toml",
            fix,
        )
    else:
        yield ok(name, f"the CRI reads {path}")


def _header(settings: CriSettings, below: str) -> str:
    if below == "containerd" and settings.table == _IMAGES:
        return f'[plugins."{_IMAGES}"]'
    return f'[plugins."{settings.table}".{below}]'


def _at_least(version: str, major: int, minor: int) -> bool:
    numbers = version.removeprefix("v").split(".")
    try:
        return (int(numbers[0]), int(numbers[1])) >= (major, minor)
    except (IndexError, ValueError):
        return False


def _table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _merge(into: dict[str, Any], document: Mapping[str, Any]) -> None:
    for key, value in document.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
