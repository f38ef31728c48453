# What stands in the record must be understood by the version that undoes, which may be a later one; so it has a number,
# and one that is not known is left alone rather than guessed at.

"""The record of what was written into a directory of configuration, and what was there before. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePath


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of one file: whether there was one before us, and digests of what we wrote in its place.

    ``note``: whatever the writer wants to know when it is to be undone.
    """

    existed: bool
    written: tuple[str, ...] = ()
    note: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """``made``: directories that were not there, the outermost first; ``files``: by path in the directory."""

    made: tuple[str, ...] = ()
    files: Mapping[str, Kept] = field(default_factory=dict)

    def dump(self) -> bytes:
        files = {path: asdict(kept) for path, kept in sorted(self.files.items())}
        return (json.dumps({"version": 1, "made": self.made, "files": files}, indent=2) + "\n").encode()

    @classmethod
    def load(cls, content: bytes) -> Record:
        """Raises ValueError."""
        try:
            document = json.loads(content)
            if document["version"] != 1:
                raise ValueError("it is of a later version")
            files = {
                str(path): Kept(bool(entry["existed"]), tuple(entry["written"]), dict(entry["note"]))
                for path, entry in document["files"].items()
            }
            made = tuple(map(str, document["made"]))
            # else undoing would remove or replace files anywhere
            for path in (*made, *files):
                if not PurePath(path).parts or ".." in PurePath(path).parts or "\0" in path:
                    raise ValueError(f"it names {path!r}")
            if any(PurePath(path).is_absolute() for path in files):
                raise ValueError("it names files elsewhere")
            return cls(made, files)
        except (KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise ValueError(f"it is damaged ({exc!r})") from None
