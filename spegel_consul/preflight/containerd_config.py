"""Checks of containerd's configuration. No I/O, but for the links of a path.

The configuration is one document, as ``config dump`` of the daemon prints it or as
:mod:`spegel_consul.preflight.containerd_files` reads it. The table of a setting depends on the version of the document:
``plugins."io.containerd.grpc.v1.cri"`` in version 2, ``plugins."io.containerd.cri.v1.images"`` from version 3 on. The
lines to add are for the file that decides.

From containerd 2.1 on, the CRI pulls images through the transfer service. It reads config_path as one directory, while
the older client reads it as a list with colons. Some distributions ship a list, and then containerd ignores every
hosts.toml without a message (containerd issue 12415, Spegel issue 1272). With a setting that the transfer service lacks
(CheckLocalImagePullConfigs in its source), the CRI pulls with the older client.

A check of a new setting belongs here, as a field of ``CriSettings`` and a rule in ``checks_of``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spegel_consul.endpoints.check import Check, fail, ok, warn
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.preflight.containerd_files import CRI, IMAGES, SHORT_CRI, File, Version, strings, table

_DEFAULT_PATH = "/etc/containerd/certs.d:/etc/docker/certs.d"  # from 2.2 on


@dataclass(frozen=True, slots=True)
class CriSettings:
    """The settings that are checked. ``config_path``: None if it is not set.

    ``inline_tls``: certificates that the CRI of 1.x refuses beside config_path; 2.x ignores them.
    ``local_pull``: whether the CRI of 2.1 and later pulls with the older client.
    """

    enabled: bool = True
    config_path: str | None = None
    inline_mirrors: bool = False
    inline_tls: bool = False
    discard: bool = False
    local_pull: bool = False

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> CriSettings:
        """From one document without imports; values of the wrong type count as not set."""
        is_new = document.get("version") in (3, 4)
        images = table(table(document, "plugins"), IMAGES if is_new else CRI)
        registry = table(images, "registry")
        path = registry.get("config_path")
        disabled = {SHORT_CRI, CRI, *([IMAGES] if is_new else [])}
        discard = (images if is_new else table(images, "containerd")).get("discard_unpacked_layers") is True
        configs = table(registry, "configs")
        return cls(
            enabled=disabled.isdisjoint(strings(document.get("disabled_plugins"))),
            config_path=path if isinstance(path, str) and path else None,
            inline_mirrors=bool(table(registry, "mirrors")),
            inline_tls=not is_new and any("tls" in table(configs, name) for name in configs),
            discard=discard,
            local_pull=is_new and (discard or _needs_local_pull(images)),
        )


def _needs_local_pull(images: Mapping[str, Any]) -> bool:
    """Whether the table has one of the settings that the transfer service lacks, or says so itself."""
    registry = table(images, "registry")
    return (
        any(images.get(key) is True for key in ("use_local_image_pull", "image_pull_with_sync_fs"))
        or images.get("disable_snapshot_annotations") is False
        or images.get("max_concurrent_downloads", 3) != 3
        or any(table(registry, key) for key in ("mirrors", "configs", "auths"))
    )


@dataclass(frozen=True, slots=True)
class Place:
    """The file to change, and the name of the CRI's table in it. ``head``: lines that a new file begins with."""

    file: Path
    table: str
    head: str = ""

    @classmethod
    def find(cls, path: Path, files: tuple[File, ...], version: Version) -> Place:
        """The place that decides about the CRI's settings. ``path``: the first file, which may not exist."""
        is_old = 0 < version.major < 2 or (version.major == 0 and all(file.version < 3 for file in files))
        if not files:
            return cls(path, CRI, "version = 2\n") if is_old else cls(path, IMAGES, "version = 3\n")
        if is_old:
            # the table of the last file that has it replaces the others
            name = CRI if any(file.version > 1 for file in files) else SHORT_CRI
            having = [file for file in files if file.plugin(name)]
            return cls((having or files)[-1 if having else 0].path, name)
        stated = [file.version for file in files if file.version > 1]
        last = stated[-1] if stated else version.newest_file
        for file in reversed(files):
            # from the old table to the new one
            is_copied = file.version < version.newest_file if version >= Version(2, 3) else last < 3
            for name in ((SHORT_CRI,) if file.version == 1 else ()) + (CRI,) if is_copied else ():
                if table(file.plugin(name), "registry"):
                    return cls(file.path, name)
            if table(file.plugin(IMAGES), "registry"):
                return cls(file.path, IMAGES)
        return cls(path, CRI if all(file.version == 2 for file in files) else IMAGES)


def checks_of(settings: CriSettings, version: Version, hosts: Path, place: Place) -> Iterator[Check]:
    """``hosts``: the directory with the hosts.toml files."""
    if not settings.enabled:
        yield ok("containerd-config", f"the CRI is disabled in {place.file}, so containerd reads no hosts.toml")
        return
    yield from _config_path(settings, version, hosts, place)
    if settings.discard:
        yield fail(
            "discard-unpacked-layers",
            "containerd discards layers once they are unpacked, so this node has no layers for its peers",
            f"# {place.file}\n{place.head}{_header(place, 'containerd')}\n  discard_unpacked_layers = false",
        )
    else:
        yield ok("discard-unpacked-layers", "layers are kept after they are unpacked")


def _config_path(settings: CriSettings, version: Version, hosts: Path, place: Place) -> Iterator[Check]:
    fix = (
        f'# {place.file}, then restart containerd\n{place.head}{_header(place, "registry")}\n  config_path = "{hosts}"'
    )
    name = "config-path"
    given = settings.config_path
    path = given or (_DEFAULT_PATH if version >= Version(2, 2) else "")
    is_misread = ":" in path and version >= Version(2, 1) and not settings.local_pull
    inline = [
        (settings.inline_mirrors, "registry.mirrors", f"move them to {hosts}"),
        (settings.inline_tls, "registry.configs.*.tls", f"move the certificates to {hosts}/<registry>"),
    ]
    if found := [(what, move) for is_set, what, move in inline if is_set]:
        what, move = (" and ".join(texts) for texts in zip(*found, strict=True))
        if given is not None:
            yield fail(name, f"{what} and config_path exclude each other, so the CRI does not start: {move}", fix)
        else:
            yield fail(name, f"{what} are set, which exclude config_path: {move} first", fix)
    elif not path:
        yield fail(name, "config_path is not set, so the CRI reads no hosts.toml and never asks a mirror", fix)
    elif is_misread and given is None:
        yield warn(name, "config_path has its default, a list, which containerd's transfer service misreads", fix)
    elif not any(_same(each, hosts) for each in path.split(":")):
        yield fail(name, f"the CRI reads {path} and not {hosts}", fix)
    elif is_misread:
        yield fail(
            name,
            f"containerd {version.major}.{version.minor} pulls through its transfer service, which takes {path} for one"
            " directory and so ignores every hosts.toml",
            fix,
        )
    else:
        yield ok(name, f"the CRI reads {path}")


def _same(path: str, directory: Path) -> bool:
    """Whether they are one directory, also through links."""
    return Path(path) == directory or (bool(path) and Path(path).resolve() == directory.resolve())


def _header(place: Place, below: str) -> str:
    if below == "containerd" and place.table == IMAGES:
        return f'[plugins."{IMAGES}"]'
    name = place.table if place.table == SHORT_CRI else f'"{place.table}"'
    return f"[plugins.{name}.{below}]"
