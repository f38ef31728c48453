"""containerd's configuration files, read by the rules of its versions (LoadConfig in its source).

A file may import others, and each file has a version of its own. The result depends on the daemon:

* 1.x: the table of a plugin in a later file replaces that of an earlier one. The last version counts for all files.
* 2.0 to 2.2: tables are merged key by key. If the last version is 2, the CRI's old table is then copied into the new
  one. A file without a version only has its names changed, so its settings for the CRI are lost.
* 2.3 and later: each file is brought to the newest version, 4, before it is merged. So the old table of a file of
  version 3 counts again (seen with 2.4.2).

Lists are joined everywhere. Every rule is compared with ``containerd config dump`` of real daemons
(tests/real/runtimes/test_containerd_files.py). The result is a document of one version without imports, like that of
``config dump``. A rule of another version of containerd belongs here.
"""

from __future__ import annotations

import glob
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spegel_consul.disk import foreign_files
from spegel_consul.error_words import in_words
from spegel_consul.lean.dataclass import dataclass

CRI, IMAGES = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"
SHORT_CRI = "cri"
"""The CRI's table and name in files of version 1."""

Document = dict[str, Any]

_MOST_FILES = 64
_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")
_MIGRATED = (
    "registry",
    "image_decryption",
    "max_concurrent_downloads",
    "image_pull_progress_timeout",
    "image_pull_with_sync_fs",
    "stats_collect_period",
)
_MIGRATED_WITH_RUNTIMES = ("snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers")


class Unreadable(Exception):
    """The configuration can't be read; the message is one line that says why."""


class MissingImport(Unreadable):
    """A file that another one imports does not exist. The daemon does not start then, although ``config dump`` may."""


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """The version of a daemon; zeros if it is not known."""

    major: int = 0
    minor: int = 0
    patch: int = 0

    @classmethod
    def parse(cls, text: str) -> Version:
        """From ``1.6.20~ds1``, ``v2.1.9`` or ``2.1.9+unknown``; zeros for anything else."""
        found = _VERSION.match(text)
        return cls(*(int(number or 0) for number in found.groups())) if found else cls()

    @property
    def newest_file(self) -> int:
        """The newest version of a file that this daemon knows."""
        if self >= Version(2, 3):
            return 4
        return 3 if self.major >= 2 else 2

    def is_before(self, *lines: Version) -> bool:
        """Whether it is older than the version of its own line, or than all lines."""
        same = [line for line in lines if (line.major, line.minor) == (self.major, self.minor)]
        return self < (same or sorted(lines))[0]


@dataclass(frozen=True, slots=True)
class File:
    """A parsed file. ``version``: as it says, 1 if it says none."""

    path: Path
    document: Document

    @property
    def version(self) -> int:
        version = self.document.get("version", 0)
        return max(version, 1) if isinstance(version, int) else 1

    def plugin(self, name: str) -> Mapping[str, Any]:
        return table(table(self.document, "plugins"), name)


@dataclass(frozen=True, slots=True)
class Configuration:
    """``document``: the result; ``files``: in the order in which they were read, empty without the first one."""

    document: Document
    files: tuple[File, ...] = ()


def read(path: Path, version: Version, cwd: Path = Path("/")) -> Configuration:
    """Read ``path`` and its imports as the daemon does. Raises Unreadable.

    ``cwd``: the daemon's working directory, to which old versions relate patterns.
    """
    try:
        first = _parsed(path, version)
    except FileNotFoundError:
        return Configuration({})
    if version.major == 0:  # the first file says which daemons know it
        version = Version(2, 3) if first.version >= 3 else Version(1, 7, 24)
    files = _with_imports(first, version, cwd)
    document = _replaced(files, version) if version.major < 2 else _merged(files, version)
    for name in (CRI, IMAGES):
        if not isinstance(table(table(table(document, "plugins"), name), "registry").get("config_path", ""), str):
            raise Unreadable(f"config_path in {path} is not a string, so the CRI does not start")
    return Configuration(document, files)


def table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table ``key``, empty if it is not one."""
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def strings(value: object) -> list[str]:
    """The strings of a list; values of the wrong type are left out."""
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _parsed(path: Path, version: Version) -> File:
    """Raises FileNotFoundError or Unreadable."""
    try:
        # 1.x skips a byte order mark, 2.x refuses it
        encoding = "utf-8" if version.major >= 2 else "utf-8-sig"
        return File(path, tomllib.loads(foreign_files.read(path, foreign_files.CONFIG_SIZE).decode(encoding)))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as exc:
        raise Unreadable(f"{path} can't be read: {in_words(exc)}") from None


def _with_imports(first: File, version: Version, cwd: Path) -> tuple[File, ...]:
    """All files, breadth first, each once."""
    files: list[File] = []
    seen = {first.path}
    todo = [first.path]
    while todo:
        path = todo.pop(0)
        try:
            file = first if path == first.path else _parsed(path, version)
        except FileNotFoundError:
            raise MissingImport(f"{path} is imported and does not exist, so containerd does not start") from None
        files.append(file)
        for imported in _imports(file, version, cwd):
            if imported not in seen:
                seen.add(imported)
                todo.append(imported)
        if len(seen) > _MOST_FILES:
            raise Unreadable(f"{first.path} imports more than {_MOST_FILES} files")
    return tuple(files)


def _imports(file: File, version: Version, cwd: Path) -> Iterable[Path]:
    for text in strings(file.document.get("imports")):
        is_pattern = "*" in text
        relates_to_cwd = is_pattern and version.is_before(Version(1, 6, 29), Version(1, 7, 16))
        # without "..", so that a file has one name
        path = os.path.normpath((cwd if relates_to_cwd else file.path.parent) / text)
        if is_pattern:
            yield from map(Path, sorted(glob.glob(path, include_hidden=True)))  # noqa: PTH207
        else:
            yield Path(path)


def _replaced(files: Iterable[File], version: Version) -> Document:
    """As 1.x reads them. Raises Unreadable."""
    plugins: Document = {}
    disabled: list[str] = []
    last = 1
    for file in files:
        last = file.version if "version" in file.document else last
        disabled += strings(file.document.get("disabled_plugins"))
        plugins |= table(file.document, "plugins")
        where = file.path
    if last > version.newest_file and not version.is_before(Version(1, 6, 32), Version(1, 7, 17)):
        raise Unreadable(_too_new(where, last, version))
    if last > 1:
        _check_names(where, [*disabled, *plugins], last)
    name = CRI if last > 1 else SHORT_CRI
    return {
        "version": 2,
        "disabled_plugins": [CRI if each == SHORT_CRI else each for each in disabled],
        "plugins": {CRI: plugins[name]} if name in plugins else {},
    }


def _merged(files: Iterable[File], version: Version) -> Document:
    """As 2.x reads them. Raises Unreadable."""
    newest = last = version.newest_file
    plugins: Document = {}
    disabled: list[str] = []
    for file in files:
        own: Document = {}
        names = strings(file.document.get("disabled_plugins"))
        if file.version < 2:
            names = [CRI if name == SHORT_CRI else name for name in names]
        for name, value in table(file.document, "plugins").items():
            own[CRI if name == SHORT_CRI and file.version < 2 else name] = value
        if version >= Version(2, 3):
            own = _migrated(own) if file.version < newest else own
            last = max(last, file.version)
        elif file.version > 1:
            last = file.version
        _merge(plugins, own)
        disabled += [name for name in names if name not in disabled]
        where = file.path
    if last > newest:
        raise Unreadable(_too_new(where, last, version))
    _check_names(where, disabled, last)
    if last < 3:
        plugins = _migrated(plugins)
    return {"version": newest, "disabled_plugins": disabled, "plugins": plugins}


def _migrated(plugins: Document) -> Document:
    """The CRI's old table copied into the new one; layers are kept or not only if the old one has runtimes."""
    old = plugins.get(CRI)
    if not isinstance(old, dict):
        return plugins
    images = dict(table(plugins, IMAGES))
    images |= {key: old[key] for key in _MIGRATED if key in old}
    below = table(old, "containerd")
    if "runtimes" in below:
        images |= {key: below[key] for key in _MIGRATED_WITH_RUNTIMES if key in below}
    return {**plugins, IMAGES: images}


def _merge(into: Document, document: Mapping[str, Any]) -> None:
    for key, value in document.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            into[key] = dict(into[key])
            _merge(into[key], value)
        else:
            into[key] = value


def _check_names(path: Path, names: Iterable[str], version: int) -> None:
    for name in names:
        if "." not in name:
            says = f"{path}: plugin {name!r} has its name of version 1, which containerd refuses in version {version}"
            raise Unreadable(f"{says}: write {CRI if name == SHORT_CRI else 'its full name'!r}")


def _too_new(path: Path, has: int, version: Version) -> str:
    daemon = f"containerd {version.major}.{version.minor}.{version.patch}"
    return f"{path} has version = {has}, and {daemon} reads up to {version.newest_file} and refuses it"
