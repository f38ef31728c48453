"""The targets that read and edit the runtimes' files, which belong to people."""

from __future__ import annotations

import json
import tomllib
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from spegel_consul.preflight.containerd_config import CriSettings, Place, checks_of
from spegel_consul.preflight.containerd_files import Unreadable, Version, read
from spegel_consul.runtimes.clients.buildkitd_toml import Added as BuildkitAdded
from spegel_consul.runtimes.clients.buildkitd_toml import added as buildkit_added
from spegel_consul.runtimes.clients.buildkitd_toml import mirrors
from spegel_consul.runtimes.clients.buildkitd_toml import taken_out as buildkit_taken_out
from spegel_consul.runtimes.clients.registries_conf import Configuration, drop_in
from spegel_consul.runtimes.daemon_json import _parsed, added, taken_out
from spegel_consul.runtimes.hosts_toml import Mirroring, Unusable, prepended, replaced
from spegel_consul.runtimes.mirror_targets import Registry, Target

_MIRRORING = Mirroring((Target("http://10.0.0.7:5000"), Target("http://127.0.0.1:5000")), authorization="Basic eA==")
_CLIENT_REGISTRIES = [Registry("docker.io"), Registry("one.lan:5000", "http://one.lan:5000"), Registry("_default")]


def hosts_toml(data: bytes) -> bool:
    text = data.decode("utf-8", "replace")
    registry = Registry("docker.io", "https://registry-1.docker.io")
    read = False
    for change in (prepended, replaced):
        try:
            changed = change(text, registry, _MIRRORING)
        except Unusable:
            continue
        document = tomllib.loads(changed)
        assert list(document["host"])[:2] == [target.url for target in _MIRRORING.targets]
        read = True
    return read


def daemon_json(data: bytes) -> bool:
    text = data.decode("utf-8", "replace")
    try:
        changed, what = added(text, _MIRRORING.targets, snapshotter=True)
    except Unusable:
        return False
    mark = "\ufeff"
    json.loads(changed.removeprefix(mark))
    # dockerd joins objects that have one name, and json would take the last
    before = _parsed("{}" if text.removeprefix(mark).strip() in ("", "null") else text.removeprefix(mark))
    after = _parsed(taken_out(changed, what).removeprefix(mark))
    for key in ("registry-mirrors", "insecure-registries", "features"):
        if not before.get(key):
            before.pop(key, None)
        if not after.get(key):
            after.pop(key, None)
    assert repr(after) == repr(before)
    return True


def registries_conf(data: bytes) -> bool:
    """Two files of other people, and ours after them."""
    texts = data.decode("utf-8", "replace").split("\0")
    read = False
    for keep in (True, False):
        try:
            existing = Configuration.of(zip(("registries.conf", "10-theirs.conf"), texts, strict=False))
            planned = drop_in(_CLIENT_REGISTRIES, _MIRRORING, existing, keep_existing=keep)
        except Unusable:
            continue
        counting = Configuration.of([("ours", planned.text)]).entries
        assert counting.keys() == {entry.prefix for entry in planned.entries}
        for entry in counting.values():
            assert [mirror["location"].partition("/")[0] for mirror in entry.mirrors[:2]] == [
                target.address for target in _MIRRORING.targets
            ]
        read = True
    return read


def buildkitd_toml(data: bytes) -> bool:
    text = data.decode("utf-8", "replace")
    with suppress(Unusable):
        mirrors(text)
    read = False
    for keep in (True, False):
        try:
            changed, what = buildkit_added(text, _CLIENT_REGISTRIES, _MIRRORING, keep_existing=keep)
        except Unusable:
            continue
        ours = [target.address for target in _MIRRORING.targets]
        for name in ("docker.io", "one.lan:5000"):
            assert tomllib.loads(changed)["registry"][name]["mirrors"][:2] == ours
        note = BuildkitAdded.of_note(json.loads(json.dumps(asdict(what))))
        back = tomllib.loads(buildkit_taken_out(changed, note))
        assert repr(_without(back, ours)) == repr(_without(tomllib.loads(text), ours))
        read = True
    return read


def _without(document: dict[str, Any], ours: list[str]) -> dict[str, Any]:
    """A mirror of ours that was there before goes with the others."""
    for table in document.get("registry", {}).values():
        if "mirrors" in table:
            table["mirrors"] = [mirror for mirror in table["mirrors"] if mirror not in ours]
    return document


def containerd_config(data: bytes) -> bool:
    read_once = False
    with TemporaryDirectory() as directory:
        file = Path(directory, "config.toml")
        file.write_bytes(data)
        for version in (Version(), Version(1, 6, 20), Version(2, 1, 9), Version(2, 3)):
            try:
                found = read(file, version)
            except Unreadable:
                continue
            place = Place.find(file, found.files, version)
            list(checks_of(CriSettings.of(found.document), version, Path("/etc/containerd/certs.d"), place))
            read_once = True
    return read_once
