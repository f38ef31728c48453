# Everything is read and worked out for all places before anything is written, so a file that can't be used stops the
# whole and leaves all others as they are.  The starting point is always the original: doing it again, with the same
# mirrors or with others, gives the same as doing it for the first time.

"""What shall be in the configuration of the runtimes of this node: planned first, then written."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from spegel_consul.runtimes import daemon_json, hosts_toml, redaction
from spegel_consul.runtimes.atomic_files import DiskError, explained
from spegel_consul.runtimes.backup import BACKUP, New, Place
from spegel_consul.runtimes.backup_record import Record
from spegel_consul.runtimes.daemon_json import Added
from spegel_consul.runtimes.hosts_toml import Mirroring, Unusable
from spegel_consul.runtimes.mirror_targets import DEFAULT, Registry

_CERTIFICATES = (".crt", ".cert", ".key")


class Refused(DiskError):
    """A file of the user can't be changed as it is; one line that names it and says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one place shall hold. ``before``: what is there now; ``notes``: what the user should know."""

    place: Place
    files: Mapping[str, New]
    before: Mapping[str, bytes | None]
    notes: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        return any(self.before[path] != new.content for path, new in self.files.items())

    def diff(self) -> Iterator[str]:
        """Lines of a unified diff, without secrets."""
        for path, new in self.files.items():
            name = str(self.place.base / path)
            before = self.before[path]
            diff = difflib.unified_diff(
                [] if before is None else _lines(path, before),
                _lines(path, new.content),
                "/dev/null" if before is None else name,
                name,
                lineterm="",
            )
            for line in diff:
                yield line[0] + line.rpartition("\0")[2] if "\0" in line else line


def plan_hosts(base: Path, registries: Sequence[Registry], mirroring: Mirroring, *, keep_existing: bool) -> Plan:
    """hosts.toml of ``registries`` below ``base``. Raises Refused or DiskError."""
    place = Place(base)
    record = place.record()
    files: dict[str, New] = {}
    for registry in registries:
        names = [name for name in registry.directories if (base / name).is_dir()]
        path = f"{(names or registry.directories[-1:])[0]}/{hosts_toml.NAME}"
        existing = place.original(path, record)
        try:
            if existing is None:
                text = hosts_toml.fresh(registry, mirroring, _certificates((base / path).parent))
            elif keep_existing:
                text = hosts_toml.prepended(_text(existing), registry, mirroring)
            else:
                text = hosts_toml.replaced(_text(existing), registry, mirroring)
        except Unusable as exc:
            raise Refused(f"{base / path} was left alone, and so was all else: {exc}") from None
        files[path] = New(text.encode(), private=mirroring.authorization is not None)
    notes = _shadowing(base, files, record) if any(registry.host == DEFAULT for registry in registries) else ()
    return Plan(place, files, {path: place.current(path) for path in files}, notes)


def plan_daemon(path: Path, mirroring: Mirroring, *, snapshotter: bool) -> Plan:
    """Docker's daemon.json at ``path``. Raises Refused or DiskError."""
    place = daemon_place(path)
    record = place.record()
    content = place.original(path.name, record)
    try:
        if record is not None and place.is_edited(path.name, record):
            content = take_out(place.current(path.name) or b"", record.files[path.name].note)
        existing = _text(content) if content is not None else ""
        text, what = daemon_json.added(existing, mirroring.targets, snapshotter=snapshotter)
    except Unusable as exc:
        raise Refused(f"{path} was left alone, and so was all else: {exc}") from None
    notes = []
    if mirroring.authorization is not None:
        notes.append(f"{path} has no place for the mirror's password: Docker asks without it")
    plan = Plan(place, {path.name: New(text.encode(), note=asdict(what))}, {path.name: place.current(path.name)})
    if plan.changes:
        notes.append("restart Docker to make it read daemon.json: a reload is enough for mirrors only")
    if what.snapshotter:
        notes.append(
            "that restart switches the containerd image store on: images of the old store are not seen while it is on"
        )
    return Plan(place, plan.files, plan.before, tuple(notes))


def daemon_place(path: Path) -> Place:
    """The place of a daemon.json; a file that was edited since gets our part taken out."""

    def undo(content: bytes, note: Mapping[str, object]) -> bytes | None:
        try:
            return take_out(content, note)
        except Unusable:
            return None

    return Place(path.parent, undo)


def take_out(content: bytes, note: Mapping[str, object]) -> bytes:
    """A daemon.json without what ``note`` says that we added. Raises Unusable."""
    mirrors, insecure = note.get("mirrors", ()), note.get("insecure", ())
    assert isinstance(mirrors, list | tuple)
    assert isinstance(insecure, list | tuple)
    switched, was_off = (note.get(name) is True for name in ("snapshotter", "was_off"))
    what = Added(tuple(map(str, mirrors)), tuple(map(str, insecure)), switched, was_off)
    return daemon_json.taken_out(_text(content), what).encode()


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as exc:
        raise Unusable(f"it is not UTF-8: {exc.reason} at byte {exc.start}") from None


def _lines(path: str, content: bytes) -> list[str]:
    """Each line as it is, and behind a NUL as it may be shown: a secret that changes is a change too."""
    text = content.decode(errors="replace").replace("\0", "\ufffd")
    shown = redaction.lines(text, is_json=path.endswith(".json"))
    return [f"{line}\0{as_shown}" for line, as_shown in zip(text.splitlines(), shown, strict=True)]


def _certificates(directory: Path) -> list[str]:
    with explained(directory, "read"):
        if not directory.is_dir():
            return []
        return [path.name for path in directory.iterdir() if path.suffix in _CERTIFICATES]


def _shadowing(base: Path, files: Mapping[str, New], record: Record | None) -> tuple[str, ...]:
    """Registries with a directory of their own, for which the runtime does not look into ``_default``."""
    with explained(base, "read"):
        names = [path.name for path in base.iterdir() if path.is_dir()] if base.is_dir() else []
    ours = {Path(path).parts[0] for path in files}.union(record.made if record is not None else ())
    others = sorted(set(names) - ours - {BACKUP})
    if not others:
        return ()
    return (
        f"{base} has directories for {', '.join(others)}, so _default does not count for them:"
        " name them in --mirrored-registries to have them mirrored too",
    )
