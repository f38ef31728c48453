# All that a run leaves on the machine carries the pid of the test process in its name: network namespaces and one
# directory.  A run that was killed can't clean up; the next one does it, once it sees that the pid is gone.
# The directory's path is short because containerd and Docker put sockets deep below it (108 bytes at most).

"""The place of one lab on this machine, and what dead ones left."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from lab.netns import NETNS_DIR, Netns
from lab.process import Failed, is_running

_PREFIX = "slab"
_NAME = re.compile(rf"{_PREFIX}-(?P<pid>\d+)-\d+(-.*)?")
_numbers = itertools.count()
_open: list[RunDir] = []


class RunDir:
    """A directory and a name that no other run has; removed on exit."""

    def __init__(self) -> None:
        self.name = f"{_PREFIX}-{os.getpid()}-{next(_numbers)}"
        self.path = Path(tempfile.gettempdir()) / self.name

    def __enter__(self) -> RunDir:
        self.path.mkdir()
        _open.append(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        _open.remove(self)
        shutil.rmtree(self.path)


def logs() -> Iterator[Path]:
    """The logs of all labs that are open now."""
    for run_dir in _open:
        yield from sorted(run_dir.path.glob("**/*.log"))


def left_behind() -> tuple[list[Netns], list[Path]]:
    """Namespaces and directories of runs whose process is gone."""
    spaces = [Netns(path.name) for path in _of_dead_runs(NETNS_DIR)]
    return spaces, list(_of_dead_runs(Path(tempfile.gettempdir())))


def sweep() -> None:
    """Remove what dead runs left."""
    spaces, directories = left_behind()
    for space in spaces:
        try:
            space.delete()
        except Failed:
            if space.path.exists():  # else another run has swept it meanwhile
                raise
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _of_dead_runs(where: Path) -> Iterator[Path]:
    if where.is_dir():
        for path in where.iterdir():
            match = _NAME.fullmatch(path.name)
            if match is not None and not is_running(int(match["pid"])):
                yield path
