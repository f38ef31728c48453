"""Our file in registries.conf.d, which podman, skopeo, Buildah and CRI-O read. No I/O.

These clients are built on containers/image (pkg/sysregistriesv2). They read registries.conf, and then each ``*.conf``
of registries.conf.d in the order of the names. A ``[[registry]]`` table replaces an earlier one with the same prefix as
a whole. So our file has a copy of the table that counted before, with our mirrors before its own; else the user's
mirrors, ``blocked`` and ``insecure`` would be lost. For an image the table with the longest prefix counts. So tables of
parts of a mirrored registry, such as ``ghcr.io/org``, are copied too.

A client does not tell a mirror which registry it means, so the registry stands in the mirror's path:
``127.0.0.1:5000/ghcr.io``. A path has no colon, so ``host:5443`` is written ``host_5443`` there
(:func:`spegel_consul.oci.reference.split_registry`). There is no table for all registries.

One bad file makes these clients refuse every pull. So the files of others are checked by the same rules before ours is
added to them. A new key of a table belongs here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.errors import NameInvalid
from spegel_consul.oci.reference import split_registry
from spegel_consul.runtimes.hosts_toml import Mirroring, Unusable, in_toml, parsed
from spegel_consul.runtimes.mirror_targets import DEFAULT, Registry

NAME = "99-spegel.conf"
"""The file that is read last of all with usual names."""
MAIN, DIRECTORY = "registries.conf", "registries.conf.d"
HEADER = '# Written by "spegel-consul configuration"; "spegel-consul cleanup" removes it.\n'
WELL_KNOWN = (
    "docker.io",
    "ghcr.io",
    "quay.io",
    "registry.k8s.io",
    "gcr.io",
    "mcr.microsoft.com",
    "public.ecr.aws",
    "lscr.io",
    "cgr.dev",
)
"""The registries that are mirrored if all are to be, for a client without a setting for all."""

_COPIES = """\
# A table replaces the one with the same prefix in registries.conf and in files before this one, so this file has copies
# of their keys. After a change there, run "spegel-consul configuration" again.
"""
_USES = ("all", "digest-only", "tag-only")
_BARE = re.compile(r"[A-Za-z0-9_-]+")

Keys = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A ``[[registry]]`` table that counts. ``origin``: its file."""

    prefix: str
    keys: Keys
    origin: str

    @property
    def mirrors(self) -> list[Keys]:
        return list(self.keys.get("mirror", ()))

    @property
    def blocked(self) -> bool:
        return self.keys.get("blocked") is True


@dataclass(frozen=True, slots=True)
class Configuration:
    """All files together. ``searched``: the registries that a name without one is looked up in."""

    entries: Mapping[str, Entry]
    searched: tuple[str, ...] = ()

    @classmethod
    def of(cls, files: Iterable[tuple[str, str]]) -> Configuration:
        """From pairs of a name and a text, in the order of reading. Raises Unusable, with the name."""
        entries: dict[str, Entry] = {}
        searched: tuple[str, ...] = ()
        for name, text in files:
            try:
                document = parsed(text)
                entries |= {prefix: Entry(prefix, keys, name) for prefix, keys in _tables(document).items()}
                searched = _searched(document, searched)
            except Unusable as exc:
                raise Unusable(f"{name} can't be used: {exc}") from None
        return cls(entries, searched)

    def of_host(self, host: str) -> Entry | None:
        """The table of a whole registry, perhaps one of ``*.example.com``."""
        fitting = [prefix for prefix in self.entries if prefix == host or _is_below(host, prefix)]
        return self.entries[max(fitting, key=len)] if fitting else None

    def below(self, host: str) -> list[Entry]:
        """The tables of parts of a registry."""
        return [entry for prefix, entry in self.entries.items() if prefix.startswith(f"{host}/")]

    @property
    def hosts(self) -> list[str]:
        """The registries that are named."""
        named = [prefix.partition("/")[0] for prefix in self.entries if not prefix.startswith("*.")]
        return list(dict.fromkeys([*self.searched, *named]))


@dataclass(frozen=True, slots=True)
class DropIn:
    """Our file. ``entries``: its tables; ``dropped``: locations of mirrors that are left out, by prefix."""

    text: str
    entries: tuple[Entry, ...]
    dropped: Mapping[str, tuple[str, ...]]


def drop_in(
    registries: Iterable[Registry], mirroring: Mirroring, existing: Configuration, *, keep_existing: bool
) -> DropIn:
    """The file with ``mirroring`` for ``registries``. Raises Unusable.

    ``existing``: all other files. ``keep_existing``: whether the mirrors are put before those of a table, or replace
    them. Blocked registries are left out, because nothing is pulled from them.
    """
    entries: list[Entry] = []
    dropped: dict[str, tuple[str, ...]] = {}
    for registry in expanded(registries, existing.hosts):
        whole = existing.of_host(registry.host)
        for entry in (whole or Entry(registry.host, {}, ""), *existing.below(registry.host)):
            if entry.blocked:
                continue
            prefix = registry.host if entry is whole else entry.prefix
            path = in_path(registry.host) + prefix.removeprefix(registry.host)
            others = [mirror for mirror in entry.mirrors if mirror["location"] not in _locations(mirroring, path)]
            if others and not keep_existing:
                dropped[prefix] = tuple(str(mirror["location"]) for mirror in others)
                others = []
            keys = dict(entry.keys) | {"prefix": prefix}
            keys.setdefault("location", registry.host)
            if registry.server is not None and registry.server.startswith("http://"):
                keys.setdefault("insecure", True)
            by_digest = keys.get("mirror-by-digest-only") is True
            keys["mirror"] = [*_mirrors(mirroring, path, by_digest=by_digest), *others]
            entries.append(Entry(prefix, keys, entry.origin))
    text = HEADER + _COPIES + "".join(_text(entry) for entry in entries)
    _check(text, entries)
    return DropIn(text, tuple(entries), dropped)


def expanded(registries: Iterable[Registry], named: Iterable[str]) -> tuple[Registry, ...]:
    """``registries`` with ``_default`` replaced by well-known registries and the hosts that are ``named``."""
    found: dict[str, Registry] = {}
    for registry in registries:
        all_of_them = (*WELL_KNOWN, *filter(_is_mirrored, named)) if registry.host == DEFAULT else ()
        for each in map(Registry, all_of_them) if all_of_them else (registry,):
            if each.host not in found or found[each.host].server is None:
                found[each.host] = each
    return tuple(found.values())


def in_path(host: str) -> str:
    """A registry as the first part of a path. Raises Unusable if it can't be written there."""
    written = host.replace(":", "_")
    try:
        split = split_registry(f"{written}/library/app")
    except NameInvalid:
        split = None
    if split is None or split[0] != host:
        raise Unusable(f"registry {host} can't be named in the path of a mirror: leave it out")
    return written


def _is_mirrored(host: str) -> bool:
    try:
        in_path(host)
    except Unusable:
        return False
    return True


def _locations(mirroring: Mirroring, path: str) -> list[str]:
    return [f"{target.address}/{path}" for target in mirroring.targets]


def _mirrors(mirroring: Mirroring, path: str, *, by_digest: bool) -> Iterator[Keys]:
    for target, location in zip(mirroring.targets, _locations(mirroring, path), strict=True):
        keys: dict[str, Any] = {"location": location}
        if target.is_plain:
            keys["insecure"] = True
        if not mirroring.resolve_tags and not by_digest:  # a table that has the one must not have the other
            keys["pull-from-mirror"] = "digest-only"
        yield keys


def _tables(document: Keys) -> dict[str, Keys]:
    """The ``[[registry]]`` tables by prefix; of two with the same the first counts. Raises Unusable."""
    if "registries" in document:
        raise Unusable(
            "it is of version 1, with [registries.search] and the like, which has no mirrors: write it as version 2,"
            ' with unqualified-search-registries = ["docker.io"] and [[registry]] tables'
        )
    tables = document.get("registry", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise Unusable('"registry" in it is not written as [[registry]] tables')
    found: dict[str, Keys] = {}
    for table in tables:
        location = _location(table, "location")
        prefix = _location(table, "prefix") or location
        if not prefix:
            raise Unusable("a [[registry]] table has neither prefix nor location")
        if not location and not prefix.startswith("*."):
            raise Unusable(f"the table of {prefix} has no location")
        if prefix.startswith("*.") and re.search("[/@:]", prefix):
            raise Unusable(f"prefix {prefix} must look like *.example.com")
        for key in ("insecure", "blocked", "mirror-by-digest-only"):
            if not isinstance(table.get(key, False), bool):
                raise Unusable(f"{key} in the table of {prefix} is neither true nor false")
        if "pull-from-mirror" in table:
            raise Unusable(f"the table of {prefix} has pull-from-mirror, which belongs to its mirrors")
        _check_mirrors(table, prefix)
        found.setdefault(prefix, table)
    _check_conflicts(tables)
    return found


def _check_mirrors(table: Keys, prefix: str) -> None:
    mirrors = table.get("mirror", [])
    if not isinstance(mirrors, list) or not all(isinstance(mirror, dict) for mirror in mirrors):
        raise Unusable(f"the mirrors of {prefix} are not written as [[registry.mirror]] tables")
    for mirror in mirrors:
        location = _location(mirror, "location")
        if not location:
            raise Unusable(f"a mirror of {prefix} has no location")
        if not isinstance(mirror.get("insecure", False), bool):
            raise Unusable(f"insecure of the mirror {location} is neither true nor false")
        use = mirror.get("pull-from-mirror", "all")
        if use not in _USES:
            raise Unusable(f"pull-from-mirror of the mirror {location} is none of {', '.join(_USES)}")
        if "pull-from-mirror" in mirror and table.get("mirror-by-digest-only") is True:
            raise Unusable(f"the table of {prefix} has mirror-by-digest-only, and a mirror of it pull-from-mirror")


def _check_conflicts(tables: Iterable[Keys]) -> None:
    """Raises Unusable for tables with the same location that differ in security."""
    seen: dict[str, tuple[object, object]] = {}
    for table in tables:
        location = _location(table, "location") or _location(table, "prefix")
        settings = (table.get("insecure", False), table.get("blocked", False))
        if seen.setdefault(location, settings) != settings:
            raise Unusable(f"it has several tables with location {location}, which differ in insecure or blocked")


def _location(table: Keys, key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise Unusable(f"a {key} in it is not a text")
    if value.startswith(("http://", "https://")):
        raise Unusable(f"{key} {value.partition('://')[0]}://… must be written without http:// or https://")
    return value.rstrip("/")


def _searched(document: Keys, before: tuple[str, ...]) -> tuple[str, ...]:
    value = document.get("unqualified-search-registries")
    if value is None:
        return before
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Unusable("unqualified-search-registries in it is not a list of texts")
    return tuple(item.rstrip("/") for item in value)


def _is_below(host: str, prefix: str) -> bool:
    """Whether a host is of the domain of a prefix like ``*.example.com``."""
    return prefix.startswith("*.") and host.partition(":")[0].endswith(prefix[1:])


def _text(entry: Entry) -> str:
    origin = f"# as in {json.dumps(entry.origin)}\n" if entry.origin else ""
    keys = {key: value for key, value in entry.keys.items() if key != "mirror"}
    order = ["prefix", "location", *keys]
    text = f"\n{origin}[[registry]]\n" + "".join(_line(key, keys[key], entry) for key in dict.fromkeys(order))
    for mirror in entry.mirrors:
        text += "\n[[registry.mirror]]\n" + "".join(_line(key, value, entry) for key, value in mirror.items())
    return text


def _line(key: str, value: object, entry: Entry) -> str:
    if isinstance(value, bool | int):
        written = json.dumps(value)
    elif isinstance(value, str):
        written = in_toml(value)
    else:
        raise Unusable(f"the table of {entry.prefix} in {entry.origin} has the key {key!r}, which can't be copied")
    return f"{key if _BARE.fullmatch(key) else in_toml(key)} = {written}\n"


def _check(text: str, entries: Iterable[Entry]) -> None:
    """Raises Unusable unless the clients read from ``text`` what is meant."""
    tables = [dict(entry.keys) for entry in entries]
    try:
        document = parsed(text)
        _tables(document)
    except Unusable as exc:
        raise Unusable(f"the tables of all files can't be copied into one: {exc}") from None
    if document.get("registry", []) != tables:
        raise Unusable("the tables of all files can't be copied into one")
