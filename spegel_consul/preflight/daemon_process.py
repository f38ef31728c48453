"""The process of a runtime: its command line, environment and program, as the kernel tells them.

The kernel knows the process that listens on a Unix socket, so it is found without a search of the process table. Of a
process in another container, or of another user, nothing can be told, and callers must do without it.

A daemon's environment may hold passwords, so only the variables that are asked for leave this module. Another fact
about a running daemon belongs here.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from spegel_consul.disk import foreign_files
from spegel_consul.lean.dataclass import dataclass

_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid (unix(7), SO_PEERCRED)
_TIMEOUT = 1.0
_MOST = 1 << 20  # bytes of a file in /proc
_PID_SIZE = 64
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class DaemonProcess:
    """A running process. ``command``: its command line; ``directory``: /proc/PID; ``owner``: its user's number."""

    directory: Path
    command: tuple[str, ...]
    owner: int = 0

    @property
    def program(self) -> Path:
        """The program that runs, even if an upgrade has replaced its file."""
        return self.directory / "exe"

    @property
    def cwd(self) -> Path:
        """Its working directory, / if it can't be told."""
        try:
            return (self.directory / "cwd").readlink()
        except OSError:
            return Path("/")

    @property
    def shares_files(self) -> bool:
        """Whether a path means the same file to it as to this process."""
        try:
            own, its = (Path(f"{process}/ns/mnt").stat() for process in (_PROC / "self", self.directory))
            roots = [Path(f"{process}/root").stat() for process in (_PROC / "self", self.directory)]
        except OSError:
            return False
        return os.path.samestat(own, its) and os.path.samestat(*roots)

    @property
    def may_be_run(self) -> bool:
        """Whether its program may be run as this user: not one of a less powerful user, who could choose it."""
        return self.owner in (0, os.geteuid())

    def flag(self, *names: str) -> str | None:
        """The value of the first flag with one of ``names`` on its command line (``config``, ``c``)."""
        words = iter(self.command[1:])
        for word in words:
            name, equals, value = word.lstrip("-").partition("=")
            if word.startswith("-") and name in names:
                return value if equals else next(words, None)
        return None

    def variables(self, names: Iterable[str]) -> dict[str, str] | None:
        """The variables ``names`` of its environment; None if it can't be read."""
        try:
            content = _read(self.directory / "environ")
        except OSError:
            return None
        wanted = set(names)
        pairs = (entry.partition("=") for entry in content.split("\0"))
        return {name: value for name, _, value in pairs if name in wanted}


def of_socket(path: Path, program: str) -> DaemonProcess | None:
    """The process that listens on ``path`` if its program is ``program``, else None. Waits 1 s at most."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_TIMEOUT)
            sock.connect(str(path))
            pid, owner, _ = _CREDENTIALS.unpack(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
    except OSError:
        return None
    # a supervisor may listen in the daemon's place, and a process of another container has pid 0
    return _running(pid, owner, program)


def of_pid_file(path: Path, program: str) -> DaemonProcess | None:
    """The process with the number in the file ``path`` if its program is ``program``, else None.

    systemd listens on Docker's socket, so that the kernel does not tell the daemon behind it.
    """
    try:
        pid = int(foreign_files.read(path, _PID_SIZE))
        return _running(pid, (_PROC / str(pid)).stat().st_uid, program)
    except (OSError, ValueError):
        return None


def _running(pid: int, owner: int, program: str) -> DaemonProcess | None:
    directory = _PROC / str(pid)
    try:
        command = tuple(_read(directory / "cmdline").rstrip("\0").split("\0"))
    except OSError:
        return None
    return DaemonProcess(directory, command, owner) if Path(command[0]).name == program else None


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST).decode(errors="replace")
