"""The record of the files written into a configuration directory, and of the originals. No I/O.

A later version of this program may have to restore from the record. So the record has a format version, and a record of
an unknown version is refused. A new fact that the restore needs belongs here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import PurePath

from spegel_consul.lean.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file: whether an original existed, and the digests of the contents that we wrote.

    ``note``: facts of the writer for the restore. ``earlier``: notes of contents that the file may still have, because
    they were not replaced yet when ``note`` was recorded.
    """

    existed: bool
    written: tuple[str, ...] = ()
    note: Mapping[str, object] = field(default_factory=dict)
    earlier: tuple[Mapping[str, object], ...] = ()

    @property
    def notes(self) -> tuple[Mapping[str, object], ...]:
        """All notes, the newest first: the additions of each may be in the file."""
        return (self.note, *self.earlier)

    def planned(self, digest: str, note: Mapping[str, object]) -> FileRecord:
        """The record before a content with ``digest`` and ``note`` replaces one that we wrote earlier."""
        written = self.written if digest in self.written else (*self.written, digest)
        new = json.dumps(note)  # one form, because a note that was read has lists in place of tuples
        earlier = tuple(before for before in self.notes if before and json.dumps(before) != new)
        return FileRecord(self.existed, written, note, earlier)


@dataclass(frozen=True, slots=True)
class Record:
    """``made``: directories that we made, the outermost first; ``files``: by path in the configuration directory."""

    made: tuple[str, ...] = ()
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    def dump(self) -> bytes:
        files = {path: asdict(recorded) for path, recorded in sorted(self.files.items())}
        return (json.dumps({"version": 1, "made": self.made, "files": files}, indent=2) + "\n").encode()

    @classmethod
    def load(cls, content: bytes) -> Record:
        """Raises ValueError."""
        try:
            document = json.loads(content)
            if document["version"] != 1:
                raise ValueError("it is of a later version of spegel-consul")
            files = {
                str(path): FileRecord(
                    bool(entry["existed"]),
                    tuple(entry["written"]),
                    dict(entry["note"]),
                    tuple(map(dict, entry.get("earlier", ()))),  # older versions write none
                )
                for path, entry in document["files"].items()
            }
            made = tuple(map(str, document["made"]))
            # a forged path would let the restore remove or replace files elsewhere
            for path in (*made, *files):
                if not PurePath(path).parts or ".." in PurePath(path).parts or "\0" in path:
                    raise ValueError(f"it names {path!r}")
            if any(PurePath(path).is_absolute() for path in files):
                raise ValueError("it names files outside of the directory")
            return cls(made, files)
        except (KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise ValueError(f"it is damaged ({exc!r})") from None
