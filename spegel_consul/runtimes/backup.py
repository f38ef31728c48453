# A directory of configuration that we take a part in has one place of ours, `_backup`, with a record of every file
# that we write and of every directory that we make, and with the originals under their own names.
#
#   1. the record is written first, so whatever comes after can be undone;
#   2. an original gets its second name in `_backup` before another file takes its place: it is the same file as
#      before, with its mode, owner, times and attributes;
#   3. the new file takes its place in one step.
#
# Undoing goes the same way back, and the record is the last thing to go.  Where the directory itself was missing, it is
# made ready under another name, with its record in it, and goes the same way.  So at each point in between, doing it
# again ends where doing it once would have, and undoing it ends where it all began.
#
# A file that is neither the original nor what we wrote was edited by somebody; it is kept beside, as NAME.edited,
# NAME.edited.1 and so on. Where our part can be taken out of it, what is left is the original from then on.

"""One directory in which files of ours replace others, and can be taken out again."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from spegel_consul.runtimes import atomic_files
from spegel_consul.runtimes.atomic_files import DiskError, explained, temporary
from spegel_consul.runtimes.backup_record import Kept, Record

BACKUP = "_backup"
_RECORD = "spegel-consul.json"


@dataclass(frozen=True, slots=True)
class New:
    """A file that is to be written."""

    content: bytes
    private: bool = False
    note: Mapping[str, object] = field(default_factory=dict)


Undo = Callable[[bytes, Mapping[str, object]], bytes | None]
"""From content and note of a file that was edited since to what it is without us; None if that can't be told."""


class Place:
    """The directory ``base``. With ``undo`` our part is taken out of edited files, which else are kept beside."""

    def __init__(self, base: Path, undo: Undo | None = None) -> None:
        self.base = base
        self._undo = undo
        self._backup = base / BACKUP

    def record(self) -> Record | None:
        """What we did here, or None. Raises DiskError."""
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
        if any(name != temporary(path).name for name in others):
            raise DiskError(
                f"{self._backup} was made by another program: run its cleanup first, or move the directory away"
            )
        return None

    def current(self, path: str) -> bytes | None:
        return atomic_files.read(self.base / path)

    def original(self, path: str, record: Record | None) -> bytes | None:
        """Content of the file as it was before us, as far as it still can be told."""
        kept = record.files.get(path) if record is not None else None
        if kept is None:
            return self.current(path)
        if not kept.existed:
            return None
        return self._saved(path) if os.path.lexists(self._backup / path) else self.current(path)

    def is_edited(self, path: str, record: Record | None) -> bool:
        """Whether somebody else changed a file since we wrote it."""
        kept = record.files.get(path) if record is not None else None
        content = self.current(path)
        return kept is not None and content is not None and self._edited(path, content, kept)

    def _edited(self, path: str, content: bytes, kept: Kept) -> bool:
        if _digest(content) in kept.written:
            return False
        if not kept.existed:
            return True
        # an original that has its second name, or has not even that, was not replaced yet
        return os.path.lexists(self._backup / path) and content != self._saved(path)

    def _saved(self, path: str) -> bytes | None:
        """Content of an original in the backup, which may be a link that leads on from the place where it was."""
        saved = self._backup / path
        atomic_files.refuse_link(saved.parent)
        return atomic_files.read((self.base / path).parent / saved.readlink() if saved.is_symlink() else saved)

    def write(self, files: Mapping[str, New]) -> Iterator[str]:
        """Make ``files`` the ones that we have here, restore all others; tells what happens. Raises DiskError."""
        self._make()
        with atomic_files.locked(self.base):
            record = self.record() or Record()
            for path in files:
                record = self._adopt(path, record)
            record = self._announce(record, files)
            for path in sorted(record.files.keys() - files.keys()):
                yield from self._restore(path, record.files[path])
            for path, new in files.items():
                yield from self._put(path, new, record.files[path])
            settled = {
                path: Kept(record.files[path].existed, (_digest(new.content),), new.note) for path, new in files.items()
            }
            self._save(self._without_gone(replace(record, files=settled)))

    def restore(self) -> Iterator[str]:
        """Bring back what was here before us; tells what happens. Raises DiskError."""
        atomic_files.sweep(self.base)
        if not self.base.is_dir():
            return
        with atomic_files.locked(self.base):
            record = self.record()
            if record is None:
                if self._backup.is_dir():
                    atomic_files.remove(temporary(self._backup / _RECORD))
                    atomic_files.remove_empty(self._backup)
                return
            left: dict[str, Kept] = {}
            problems: list[str] = []
            for path, kept in sorted(record.files.items()):
                try:
                    yield from self._restore(path, kept)
                except DiskError as exc:
                    left[path] = kept
                    problems.append(str(exc))
            if problems:
                try:
                    self._save(replace(record, files=left))  # the others are no more ours
                except DiskError as exc:
                    problems.append(str(exc))
                raise DiskError("; ".join(problems))
            for name in reversed(record.made):
                directory = self.base / name
                if self.base in directory.parents and directory.is_dir() and atomic_files.remove_empty(directory):
                    yield f"removed {directory}"
            yield from self._leave(record)

    # Steps of writing

    def _adopt(self, path: str, record: Record) -> Record:
        """An edited file without our part becomes the original, so that undoing never brings back an older one."""
        place, saved, kept, content = self.base / path, self._backup / path, record.files.get(path), self.current(path)
        if self._undo is None or kept is None or content is None or not self._edited(path, content, kept):
            return record
        mended = self._undo(content, kept.note)
        if mended is None:
            return record
        if mended != content:
            atomic_files.write(place, mended)
        atomic_files.make_directory(saved.parent)
        atomic_files.keep(place, saved)
        adopted = replace(record, files={**record.files, path: replace(kept, existed=True)})
        self._save(adopted)
        return adopted

    def _announce(self, record: Record, files: Mapping[str, New]) -> Record:
        """The record with what is about to happen, on the disk."""
        known = dict(record.files)
        made = list(record.made)
        for path, new in files.items():
            kept = known.get(path) or Kept(os.path.lexists(self.base / path))
            digest = _digest(new.content)
            written = kept.written if digest in kept.written else (*kept.written, digest)
            known[path] = Kept(kept.existed, written, new.note)
            parent = Path(path).parent
            if parent != Path() and not (self.base / parent).is_dir() and str(parent) not in made:
                made.append(str(parent))
        announced = Record(tuple(made), known)
        self._save(announced)
        return announced

    def _save(self, record: Record) -> None:
        path = self._backup / _RECORD
        atomic_files.refuse_link(self._backup)
        if atomic_files.read(path, follow=False) != record.dump():
            atomic_files.make_directory(self._backup)
            atomic_files.write(path, record.dump())

    def _put(self, path: str, new: New, kept: Kept) -> Iterator[str]:
        place, saved = self.base / path, self._backup / path
        atomic_files.refuse_link(saved.parent)
        content = atomic_files.read(place)
        atomic_files.remove(temporary(place))
        if content == new.content:
            return
        atomic_files.make_directory(place.parent)
        if kept.existed and not os.path.lexists(saved):
            if os.path.lexists(place):
                atomic_files.make_directory(saved.parent)
                atomic_files.keep(place, saved)
        elif content is not None and self._undo is None and self._edited(path, content, kept):
            yield atomic_files.keep_edited(place)
        atomic_files.write(place, new.content, private=new.private)
        yield f"wrote {place}"

    def _make(self) -> None:
        """Make the directory, with its record in it from the first moment on."""
        missing = [path for path in (self.base, *self.base.parents) if not path.is_dir()]
        if not missing:
            return
        outermost = missing[-1]
        ready = temporary(outermost)
        with explained(self.base, "make"):
            atomic_files.clear(ready)
            inner = ready / self.base.relative_to(outermost) / BACKUP
            inner.mkdir(parents=True)
            atomic_files.write(inner / _RECORD, Record(made=tuple(map(str, reversed(missing)))).dump())
            try:
                os.rename(ready, outermost)  # noqa: PTH104
            except OSError:
                if not self.base.is_dir():  # else somebody else was faster
                    raise

    # Steps of undoing

    def _restore(self, path: str, kept: Kept) -> Iterator[str]:
        place, saved = self.base / path, self._backup / path
        atomic_files.refuse_link(saved.parent)
        atomic_files.remove(temporary(place))
        content = atomic_files.read(place)
        is_replaced = os.path.lexists(saved) or not kept.existed
        if content is not None and self._edited(path, content, kept):
            mended = self._undo(content, kept.note) if self._undo is not None else None
            if mended is not None:
                if mended != content:
                    atomic_files.write(place, mended)
                    yield f"took our part out of {place}, which was edited since it was written"
                atomic_files.remove(saved)
                is_replaced = False
            else:
                yield atomic_files.keep_edited(place)
        if is_replaced and kept.existed:
            atomic_files.make_directory(place.parent)
            atomic_files.move(saved, place)
            yield f"restored {place}"
        elif is_replaced and content is not None:
            atomic_files.remove(place)
            yield f"removed {place}"
        if saved.parent != self._backup and saved.parent.is_dir():
            atomic_files.remove(temporary(saved))
            atomic_files.remove_empty(saved.parent)

    def _without_gone(self, record: Record) -> Record:
        """Directories that we made and that hold nothing any more are removed and forgotten."""
        needed = {str(Path(path).parent) for path in record.files}
        made = [name for name in record.made if Path(name).is_absolute() or name in needed]
        for name in set(record.made).difference(made):
            atomic_files.remove_empty(self.base / name)
        return replace(record, made=tuple(made))

    def _leave(self, record: Record) -> Iterator[str]:
        """Give up `_backup`, and the directory with it if we made that and nobody else has put anything in it."""
        made = [Path(name) for name in record.made if Path(name).is_absolute()]
        mine = [path for path in made if path == self.base or path in self.base.parents]
        for outermost in mine:
            if all(self._holds_only(path, self.base) for path in (outermost, *_between(outermost, self.base))):
                with explained(outermost, "remove"):
                    ready = temporary(outermost)
                    os.rename(outermost, ready)  # noqa: PTH104
                    shutil.rmtree(ready)
                yield f"removed {outermost}"
                return
        atomic_files.remove(self._backup / _RECORD)
        atomic_files.remove(temporary(self._backup / _RECORD))
        atomic_files.remove_empty(self._backup)

    @staticmethod
    def _holds_only(path: Path, base: Path) -> bool:
        """Whether a directory on the way to ``base`` holds nothing but the way, and ``base`` nothing but `_backup`."""
        expected = BACKUP if path == base else base.relative_to(path).parts[0]
        with explained(path, "read"):
            return [entry.name for entry in path.iterdir()] == [expected]


def _between(outermost: Path, base: Path) -> list[Path]:
    """The directories below ``outermost`` down to ``base``."""
    below = base.relative_to(outermost).parts
    return [outermost.joinpath(*below[: length + 1]) for length in range(len(below))]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
