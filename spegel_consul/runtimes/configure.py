"""Plans of the runtimes' configuration: the new content of each file, worked out before any file is written.

All files are read and planned first, so a file that can't be used stops the command before it has changed anything. A
plan always starts from the original. So a second run, with the same mirrors or with others, gives the same files as a
first run. A new kind of configuration file belongs here as a ``plan_…`` function; its syntax belongs to a module of its
own, such as :mod:`spegel_consul.runtimes.hosts_toml`.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, field
from pathlib import Path

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.runtimes import atomic_files, daemon_json, hosts_files, hosts_toml, redaction
from spegel_consul.runtimes.atomic_files import Dangling, DiskError, explained
from spegel_consul.runtimes.backup import ConfigDirectory, New, Undo
from spegel_consul.runtimes.backup_record import Record
from spegel_consul.runtimes.clients import buildkitd_toml, registries_conf
from spegel_consul.runtimes.daemon_json import Added
from spegel_consul.runtimes.hosts_toml import Mirroring, Unusable
from spegel_consul.runtimes.mirror_targets import DEFAULT, Registry

_CERTIFICATES = (".crt", ".cert", ".key")


class Refused(DiskError):
    """A file of the user can't be changed; the message is one line that names it and says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """New files of one directory. ``before``: the current contents; ``notes``: lines for the user.

    ``restored``: the originals of files of an earlier plan, None for a file that is removed.
    """

    directory: ConfigDirectory
    files: Mapping[str, New]
    before: Mapping[str, bytes | None]
    notes: tuple[str, ...] = ()
    restored: Mapping[str, bytes | None] = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        return any(self.before[path] != after for path, after in self._after.items())

    @property
    def _after(self) -> dict[str, bytes | None]:
        return {**self.restored, **{path: new.content for path, new in self.files.items()}}

    def diff(self) -> Iterator[str]:
        """Lines of a unified diff, with secrets redacted."""
        for path, after in self._after.items():
            name = str(self.directory.base / path)
            before = self.before[path]
            diff = difflib.unified_diff(
                [] if before is None else _lines(path, before),
                [] if after is None else _lines(path, after),
                "/dev/null" if before is None else name,
                "/dev/null" if after is None else name,
                lineterm="",
            )
            for line in diff:
                yield line[0] + line.rpartition("\0")[2] if "\0" in line else line


def plan_hosts(base: Path, registries: Sequence[Registry], mirroring: Mirroring, *, keep_existing: bool) -> Plan:
    """Plan the hosts.toml of ``registries`` below ``base``. Raises Refused or DiskError.

    ``keep_existing``: whether the mirrors are put before the hosts of a file, or replace them, which is then noted.
    """
    directory = ConfigDirectory(base)
    record = directory.record()
    files: dict[str, New] = {}
    notes: list[str] = []
    for registry in registries:
        with explained(base, "read"):
            names = [name for name in registry.directories if (base / name).is_dir()]
        path = f"{(names or registry.directories[-1:])[0]}/{hosts_toml.NAME}"
        existing = directory.original(path, record)
        try:
            if existing is None:
                text = hosts_toml.fresh(registry, mirroring, _certificates((base / path).parent))
            elif keep_existing:
                text = hosts_toml.prepended(_text(existing), registry, mirroring)
            else:
                text = hosts_toml.replaced(_text(existing), registry, mirroring)
                if gone := hosts_toml.dropped(_text(existing), mirroring):
                    hosts = ", ".join(map(redaction.url, gone))
                    notes.append(f"{base / path} no longer names {hosts}: cleanup brings it back")
        except Unusable as exc:
            raise Refused(f"{base / path} was left alone, and so was all else: {exc}") from None
        files[path] = New(text.encode(), private=mirroring.authorization is not None)
    if any(registry.host == DEFAULT for registry in registries):
        notes += _shadowing(base, files, record)
    before = {path: directory.current(path) for path in files}
    restored: dict[str, bytes | None] = {}
    for path in directory.others(files, record):
        with suppress(Dangling):  # a link is put back without its target, so the plan lacks only its content
            before[path], restored[path] = directory.current(path), directory.original(path, record)
    return Plan(directory, files, before, tuple(notes), restored)


def plan_registries_conf(
    base: Path, registries: Sequence[Registry], mirroring: Mirroring, *, keep_existing: bool
) -> Plan:
    """Plan our file in registries.conf.d below ``base``, which is /etc/containers. Raises Refused or DiskError.

    ``keep_existing``: as for ``plan_hosts``.
    """
    name = registries_conf.NAME
    directory = containers_directory(base)
    own = directory.original(name, directory.record())
    if own is not None and not own.startswith(registries_conf.HEADER.encode()):
        raise Refused(f"{directory.base / name} was not written by this program: move it away, or give it another name")
    try:
        others = [file for file in conf_files(base) if file[0] != str(directory.base / name)]
        existing = registries_conf.Configuration.of(others)
        planned = registries_conf.drop_in(registries, mirroring, existing, keep_existing=keep_existing)
    except Unusable as exc:
        raise Refused(f"nothing was changed: {exc}") from None
    notes = [
        f"{directory.base / name} leaves out the mirrors {', '.join(locations)} of {prefix}: cleanup brings them back"
        for prefix, locations in planned.dropped.items()
    ]
    origins = {Path(entry.origin) for entry in planned.entries}
    if later := sorted(str(file) for file in origins if file.parent == directory.base and file.name > name):
        notes.append(f"{', '.join(later)} is read after {name}, so its tables count: rename it to a name before {name}")
    if any(registry.host == DEFAULT for registry in registries):
        notes.append(
            "podman and CRI-O have no mirror for all registries, so these are mirrored:"
            f" {', '.join(entry.prefix for entry in planned.entries)}; name others in --mirrored-registries"
        )
    if mirroring.authorization is not None:
        notes.append(f"{name} can't hold the mirror's password: podman login {mirroring.targets[0].address}")
    return Plan(directory, {name: New(planned.text.encode())}, {name: directory.current(name)}, tuple(notes))


def conf_files(base: Path) -> list[tuple[str, str]]:
    """The paths and texts of the registries.conf files below ``base``, in the order of reading.

    Raises Unusable or DiskError.
    """
    directory = base / registries_conf.DIRECTORY
    with explained(directory, "read"):
        names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    files = [base / registries_conf.MAIN, *(directory / name for name in names if name.endswith(".conf"))]
    found: list[tuple[str, str]] = []
    for path in files:
        with explained(path, "read"):
            if path.is_dir():
                continue
        content = atomic_files.read(path)
        if content is not None:
            try:
                found.append((str(path), _text(content)))
            except Unusable as exc:
                raise Unusable(f"{path} can't be used: {exc}") from None
    return found


def plan_daemon(path: Path, mirroring: Mirroring, *, snapshotter: bool, flags: Mapping[str, str] | None = None) -> Plan:
    """Plan Docker's daemon.json at ``path``; the options are those of ``added``. Raises Refused or DiskError."""
    directory = daemon_directory(path)
    try:
        content = _without_ours(directory, path.name, take_out)
        existing = _text(content) if content is not None else ""
        text, what = daemon_json.added(existing, mirroring.targets, snapshotter=snapshotter, flags=flags)
    except Unusable as exc:
        raise Refused(f"{path} was left alone, and so was all else: {exc}") from None
    notes = []
    if mirroring.authorization is not None:
        notes.append(f"{path} can't hold the mirror's password: Docker asks without it")
    plan = Plan(
        directory, {path.name: New(text.encode(), note=asdict(what))}, {path.name: directory.current(path.name)}
    )
    if plan.changes:
        notes.append("restart Docker to make it read daemon.json: a reload is enough for mirrors only")
    if what.snapshotter:
        notes.append(
            "that restart switches the containerd image store on: images of the old store are not seen while it is on"
        )
    return Plan(directory, plan.files, plan.before, tuple(notes))


def plan_buildkitd(path: Path, registries: Sequence[Registry], mirroring: Mirroring, *, keep_existing: bool) -> Plan:
    """Plan BuildKit's buildkitd.toml at ``path``. Raises Refused or DiskError.

    ``keep_existing``: as for ``plan_hosts``.
    """
    directory = buildkitd_directory(path)
    try:
        content = _without_ours(directory, path.name, take_out_of_buildkitd)
        existing = _text(content) if content is not None else ""
        text, what = buildkitd_toml.added(existing, registries, mirroring, keep_existing=keep_existing)
    except Unusable as exc:
        raise Refused(f"{path} was left alone, and so was all else: {exc}") from None
    plan = Plan(
        directory, {path.name: New(text.encode(), note=asdict(what))}, {path.name: directory.current(path.name)}
    )
    notes = [
        f"{path} no longer names {', '.join(gone)} for {name}: cleanup brings it back"
        for name, gone in what.dropped.items()
    ]
    if any(registry.host == DEFAULT for registry in registries):
        names = ", ".join(registry.host for registry in buildkitd_toml.mirrored(existing, registries, mirroring))
        notes.append(
            f"BuildKit has no mirror for all registries, so these are mirrored: {names}; name others in"
            " --mirrored-registries"
        )
    if not mirroring.resolve_tags:
        notes.append("BuildKit asks its mirrors for tags too: it has no setting for digests only")
    if mirroring.authorization is not None:
        notes.append(
            f"{path} can't hold the mirror's password: docker login {mirroring.targets[0].address} where builds start"
        )
    if plan.changes:
        notes.append("restart BuildKit to make it read buildkitd.toml: systemctl restart buildkit")
    return Plan(directory, plan.files, plan.before, tuple(notes))


def daemon_directory(path: Path) -> ConfigDirectory:
    """The directory of a daemon.json; our part is taken out of a file that was edited."""
    return ConfigDirectory(path.parent, _undo(take_out), path.name)


def containers_directory(base: Path) -> ConfigDirectory:
    """The directory of our file for podman and CRI-O below ``base``, which is /etc/containers."""
    return ConfigDirectory(base / registries_conf.DIRECTORY, only=registries_conf.NAME)


def buildkitd_directory(path: Path) -> ConfigDirectory:
    """The directory of a buildkitd.toml; our part is taken out of a file that was edited."""
    return ConfigDirectory(path.parent, _undo(take_out_of_buildkitd), path.name)


def _without_ours(
    directory: ConfigDirectory, name: str, taken_out: Callable[[bytes, Mapping[str, object]], bytes]
) -> bytes | None:
    """The original, or an edited file without our part; None without a file. Raises Unusable or DiskError."""
    record = directory.record()
    if record is None or not directory.is_edited(name, record):
        return directory.original(name, record)
    return functools.reduce(taken_out, record.files[name].notes, directory.current(name) or b"")


def _undo(taken_out: Callable[[bytes, Mapping[str, object]], bytes]) -> Undo:
    def undo(content: bytes, notes: Sequence[Mapping[str, object]]) -> bytes | None:
        try:
            return functools.reduce(taken_out, notes, content)
        except Unusable:
            return None

    return undo


def take_out(content: bytes, note: Mapping[str, object]) -> bytes:
    """A daemon.json without the entries that we added, which ``note`` lists. Raises Unusable."""
    mirrors, insecure = note.get("mirrors", ()), note.get("insecure", ())
    assert isinstance(mirrors, list | tuple)
    assert isinstance(insecure, list | tuple)
    switched, was_off = (note.get(name) is True for name in ("snapshotter", "was_off"))
    what = Added(tuple(map(str, mirrors)), tuple(map(str, insecure)), switched, was_off)
    return daemon_json.taken_out(_text(content), what).encode()


def take_out_of_buildkitd(content: bytes, note: Mapping[str, object]) -> bytes:
    """A buildkitd.toml without our additions, which ``note`` lists. Raises Unusable."""
    return buildkitd_toml.taken_out(_text(content), buildkitd_toml.Added.of_note(note)).encode()


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as exc:
        raise Unusable(f"it is not UTF-8: {exc.reason} at byte {exc.start}; save it as UTF-8") from None


def _lines(path: str, content: bytes) -> list[str]:
    """Each line, and behind a NUL its redacted form; the diff compares both, because a new secret is a change too."""
    text = content.decode(errors="replace").replace("\0", "\ufffd")
    shown = redaction.lines(text, is_json=path.endswith(".json"))
    return [f"{line}\0{as_shown}" for line, as_shown in zip(text.splitlines(), shown, strict=True)]


def _certificates(directory: Path) -> list[str]:
    with explained(directory, "read"):
        if not directory.is_dir():
            return []
        return [path.name for path in directory.iterdir() if path.suffix in _CERTIFICATES]


def _shadowing(base: Path, files: Mapping[str, New], record: Record | None) -> tuple[str, ...]:
    """A note on registries with a directory of their own, for which the runtime does not read ``_default``."""
    ours = {Path(path).parts[0] for path in files}.union(record.made if record is not None else ())
    with explained(base, "read"):
        others = hosts_files.shadowing(base, set(map(hosts_files.registry_of, ours)))
    if not others:
        return ()
    return (
        f"{base} has directories for {', '.join(others)}, so runtimes do not read _default for them:"
        " name them in --mirrored-registries to have them mirrored too",
    )
