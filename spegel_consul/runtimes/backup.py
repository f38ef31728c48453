"""One configuration directory in which our files replace others, with the backup that restores the originals.

The directory gets one directory of ours, ``_backup``. It holds a record of each file that we write and of each
directory that we make, and the originals under their own names.

1. The record is written first, as a write-ahead log, so each later step can be undone.
2. An original is hard-linked into ``_backup`` before it is replaced. So it stays the same file, with its mode, owner,
   times and attributes.
3. The new file is renamed over the original.

The restore takes these steps backwards and removes the record last. If the configuration directory itself is missing,
it is made under a temporary name with the record in it and then renamed. So after an interruption at any point, a
repeated write ends as one write does, and a restore ends at the original state.

A file that is neither the original nor ours was edited; it is kept as NAME.edited, NAME.edited.1 and so on. If our part
can be taken out of it, the rest becomes the original.

A rule about the order of steps or about edited files belongs here; the content of the files belongs to
:mod:`spegel_consul.runtimes.configure`, and one step on the disk to :mod:`spegel_consul.runtimes.atomic_files`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.runtimes import atomic_files
from spegel_consul.runtimes.atomic_files import Dangling, DiskError, explained, temporary
from spegel_consul.runtimes.backup_record import FileRecord, Record

BACKUP = "_backup"
_RECORD = "spegel-consul.json"


@dataclass(frozen=True, slots=True)
class New:
    """A file to write. ``private``: only its owner may read it; ``note``: kept in the record for ``Undo``."""

    content: bytes
    private: bool = False
    note: Mapping[str, object] = field(default_factory=dict)


Undo = Callable[[bytes, Sequence[Mapping[str, object]]], bytes | None]
"""From the content and the notes of an edited file to its content without our part; None if that is not possible."""


class ConfigDirectory:
    """The directory ``base``. ``undo`` takes our part out of edited files; without it they are kept as NAME.edited.

    ``only``: the name of the only file in it that is written and restored here; None: the files of its subdirectories.
    Others of the record stay, because several runtimes may have their files in one directory.
    """

    def __init__(self, base: Path, undo: Undo | None = None, only: str | None = None) -> None:
        self.base = base
        self._undo = undo
        self._only = only
        self._backup = base / BACKUP

    def record(self) -> Record | None:
        """The record in this directory, or None without one. Raises DiskError."""
        path = self._backup / _RECORD
        atomic_files.refuse_link(self._backup)
        content = atomic_files.read(path, follow=False)
        if content is not None:
            try:
                return Record.load(content)
            except ValueError as exc:
                raise DiskError(f"{path} can't be understood: {exc}; nothing was changed") from None
        with explained(self._backup, "read"):
            others = [path.name for path in self._backup.iterdir()] if self._backup.is_dir() else []
        if not all(map(atomic_files.is_temporary, others)):
            raise DiskError(
                f"{self._backup} was made by another program: run its cleanup first, or move the directory away"
            )
        return None

    def current(self, path: str) -> bytes | None:
        return atomic_files.read(self.base / path)

    def original(self, path: str, record: Record | None) -> bytes | None:
        """Content of the original, as far as it is still known; None if there was no file. Raises DiskError."""
        recorded = record.files.get(path) if record is not None else None
        if recorded is None:
            return self.current(path)
        if not recorded.existed:
            return None
        return self._saved(path) if os.path.lexists(self._backup / path) else self.current(path)

    def is_edited(self, path: str, record: Record | None) -> bool:
        """Whether a file was changed since we wrote it. Raises DiskError."""
        recorded = record.files.get(path) if record is not None else None
        content = self.current(path)
        return recorded is not None and content is not None and self._edited(path, content, recorded)

    def _edited(self, path: str, content: bytes, recorded: FileRecord) -> bool:
        if _digest(content) in recorded.written:
            return False
        if not recorded.existed:
            return True
        # without its link in the backup, or with the same content as there, the original was not replaced yet
        try:
            return os.path.lexists(self._backup / path) and content != self._saved(path)
        except Dangling:
            return True  # a file with content took the place of that link

    def _saved(self, path: str) -> bytes | None:
        """Content of an original in the backup; a symbolic link is followed from the directory where it was."""
        saved = self._backup / path
        atomic_files.refuse_link(saved.parent)
        with explained(saved, "read"):
            link = saved.readlink() if saved.is_symlink() else None
        if link is None:
            return atomic_files.read(saved)
        content = atomic_files.read((self.base / path).parent / link)
        if content is None:
            raise Dangling(saved, link)
        return content

    def others(self, files: Mapping[str, New], record: Record | None) -> list[str]:
        """The files that a write of ``files`` restores, because an earlier one has written them."""
        return sorted(self._divided(record)[0].keys() - files.keys()) if record is not None else []

    def write(self, files: Mapping[str, New]) -> Iterator[str]:
        """Write ``files`` and restore our others of the record. Yields one line for each change. Raises DiskError."""
        self._make()
        with atomic_files.locked(self.base):
            record = self.record() or Record()
            for path in files:
                record = self._adopt_edit(path, record)
            record = self._write_ahead(record, files)
            for path in self.others(files, record):
                yield from self._restore(path, record.files[path])
            for path, new in files.items():
                yield from self._put(path, new, record.files[path])
            settled = {
                path: FileRecord(record.files[path].existed, (_digest(new.content),), new.note)
                for path, new in files.items()
            }
            _, foreign = self._divided(record)
            self._save(self._without_gone(replace(record, files={**foreign, **settled})))

    def restore(self) -> Iterator[str]:
        """Restore the originals. Yields one line for each change. Raises DiskError."""
        atomic_files.sweep(self.base)
        if not self.base.is_dir():
            return
        with atomic_files.locked(self.base):
            record = self.record()
            if record is None:
                if self._backup.is_dir():
                    for file in list(self._backup.iterdir()):  # only temporary files, says record()
                        atomic_files.remove(file)
                    atomic_files.remove_empty(self._backup)
                return
            ours, left = self._divided(record)
            problems: list[str] = []
            for path, recorded in sorted(ours.items()):
                try:
                    yield from self._restore(path, recorded)
                except DiskError as exc:
                    left[path] = recorded
                    problems.append(str(exc))
            if problems:
                try:
                    self._save(replace(record, files=left))  # all others are restored
                except DiskError as exc:
                    problems.append(str(exc))
                raise DiskError("; ".join(problems))
            for name in reversed(record.made):
                directory = self.base / name
                if self.base in directory.parents and directory.is_dir() and atomic_files.remove_empty(directory):
                    yield f"removed {directory}"
            if left:
                self._save(self._without_gone(replace(record, files=left)))
            else:
                yield from self._remove_backup(record)

    def _divided(self, record: Record) -> tuple[dict[str, FileRecord], dict[str, FileRecord]]:
        """The files of the record that belong to this object, and the others."""
        ours = dict(record.files)
        others = {
            path: ours.pop(path)
            for path in record.files
            if (path != self._only if self._only is not None else Path(path).parent == Path())
        }
        return ours, others

    # Steps of writing

    def _adopt_edit(self, path: str, record: Record) -> Record:
        """Make an edited file without our part the original, because a restore must not bring back an older one."""
        target, saved = self.base / path, self._backup / path
        recorded, content = record.files.get(path), self.current(path)
        if self._undo is None or recorded is None or content is None or not self._edited(path, content, recorded):
            return record
        without_ours = self._undo(content, recorded.notes)
        if without_ours is None:
            return record
        if without_ours != content:
            atomic_files.write(target, without_ours)
        atomic_files.make_directory(saved.parent)
        atomic_files.keep(target, saved)
        adopted = replace(record, files={**record.files, path: replace(recorded, existed=True)})
        self._save(adopted)
        return adopted

    def _write_ahead(self, record: Record, files: Mapping[str, New]) -> Record:
        """Add the planned changes to the record and save it, before they are made."""
        known = dict(record.files)
        made = list(record.made)
        for path, new in files.items():
            recorded = known.get(path) or FileRecord(os.path.lexists(self.base / path))
            known[path] = recorded.planned(_digest(new.content), new.note)
            parent = Path(path).parent
            if parent != Path() and not (self.base / parent).is_dir() and str(parent) not in made:
                made.append(str(parent))
        planned = Record(tuple(made), known)
        self._save(planned)
        return planned

    def _save(self, record: Record) -> None:
        path = self._backup / _RECORD
        atomic_files.refuse_link(self._backup)
        if atomic_files.read(path, follow=False) != record.dump():
            atomic_files.make_directory(self._backup)
            atomic_files.write(path, record.dump())

    def _put(self, path: str, new: New, recorded: FileRecord) -> Iterator[str]:
        target, saved = self.base / path, self._backup / path
        atomic_files.refuse_link(saved.parent)
        content = atomic_files.read(target)
        atomic_files.remove(temporary(target))
        if content == new.content:
            return
        atomic_files.make_directory(target.parent)
        if recorded.existed and not os.path.lexists(saved):
            if os.path.lexists(target):
                atomic_files.make_directory(saved.parent)
                atomic_files.keep(target, saved)
        elif content is not None and self._undo is None and self._edited(path, content, recorded):
            yield atomic_files.keep_edited(target)
        atomic_files.write(target, new.content, private=new.private)
        yield f"wrote {target}"

    def _make(self) -> None:
        """Make the directory together with its record, in one rename."""
        with explained(self.base, "make"):
            missing = [path for path in (self.base, *self.base.parents) if not path.is_dir()]
            if not missing:
                return
            outermost = missing[-1]
            ready = temporary(outermost)
            atomic_files.clear(ready)
            inner = ready / self.base.relative_to(outermost) / BACKUP
            for directory in (ready, *_between(ready, inner)):
                atomic_files.make_directory(directory)
            atomic_files.write(inner / _RECORD, Record(made=tuple(map(str, reversed(missing)))).dump())
            try:
                os.rename(ready, outermost)  # noqa: PTH104
            except OSError:
                if not self.base.is_dir():  # else another program has made it meanwhile
                    raise

    # Steps of undoing

    def _restore(self, path: str, recorded: FileRecord) -> Iterator[str]:
        target, saved = self.base / path, self._backup / path
        atomic_files.refuse_link(saved.parent)
        atomic_files.remove(temporary(target))
        try:
            content = atomic_files.read(target)
        except Dangling:
            content = None  # nothing of ours; so a cleanup needs no target of a link
        is_replaced = os.path.lexists(saved) or not recorded.existed
        if content is not None and self._edited(path, content, recorded):
            without_ours = self._undo(content, recorded.notes) if self._undo is not None else None
            if without_ours is not None:
                if without_ours != content:
                    atomic_files.write(target, without_ours)
                    yield f"took our part out of {target}, which was edited since it was written"
                atomic_files.remove(saved)
                is_replaced = False
            else:
                yield atomic_files.keep_edited(target)
        if is_replaced and recorded.existed:
            atomic_files.make_directory(target.parent)
            atomic_files.move(saved, target)
            yield f"restored {target}"
        elif is_replaced and content is not None:
            atomic_files.remove(target)
            yield f"removed {target}"
        atomic_files.remove(temporary(saved))
        if saved.parent != self._backup and saved.parent.is_dir():
            atomic_files.remove_empty(saved.parent)

    def _without_gone(self, record: Record) -> Record:
        """Remove directories that we made and that are empty now, also from the record."""
        needed = {str(Path(path).parent) for path in record.files}
        made = [name for name in record.made if Path(name).is_absolute() or name in needed]
        for name in set(record.made).difference(made):
            atomic_files.remove_empty(self.base / name)
        return replace(record, made=tuple(made))

    def _remove_backup(self, record: Record) -> Iterator[str]:
        """Remove ``_backup``, and the directory itself if we made it and it holds nothing else."""
        made = [Path(name) for name in record.made if Path(name).is_absolute()]
        mine = [path for path in made if path == self.base or path in self.base.parents]
        mounts = atomic_files.mount_points()
        for outermost in mine:
            whole = (outermost, *_between(outermost, self.base))
            # a container's mount stays: it can't be renamed, nor removed
            if mounts.isdisjoint(map(os.path.realpath, whole)) and all(map(self._holds_only, whole)):
                with explained(outermost, "remove"):
                    ready = temporary(outermost)
                    os.rename(outermost, ready)  # noqa: PTH104
                    shutil.rmtree(ready)
                yield f"removed {outermost}"
                return
        atomic_files.remove(self._backup / _RECORD)
        atomic_files.remove(temporary(self._backup / _RECORD))
        atomic_files.remove_empty(self._backup)

    def _holds_only(self, path: Path) -> bool:
        """Whether a parent of ``base`` holds only the next directory towards it, or ``base`` holds only ``_backup``."""
        expected = BACKUP if path == self.base else self.base.relative_to(path).parts[0]
        with explained(path, "read"):
            return [entry.name for entry in path.iterdir()] == [expected]


def _between(outermost: Path, base: Path) -> list[Path]:
    """The directories below ``outermost`` down to ``base``."""
    below = base.relative_to(outermost).parts
    return [outermost.joinpath(*below[: length + 1]) for length in range(len(below))]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
