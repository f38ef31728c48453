# The nodes are forked from a process that has imported everything and runs nothing: fifty interpreters that start
# one by one would take longer than all that is measured.

"""Processes of a measured ring, and questions to them."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from bench.proc import cpu_seconds, rss
from bench.ring.node import run

_PATIENCE = 120.0


class Member:
    """One node: a process, and the socket on which it takes commands."""

    def __init__(self, others: Iterable[Member]) -> None:
        self._control, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self._control.close()
                for other in others:
                    other._control.close()
                run(theirs)
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        self._control.settimeout(_PATIENCE)
        self._answers = self._control.makefile("rb")
        hello = self.ask("hello")
        self.id: str = hello["id"]
        self.addr: str = hello["addrs"][0]

    def tell(self, command: str, *arguments: object) -> None:
        """Send a command; :meth:`answer` is to follow."""
        self._control.sendall(json.dumps([command, arguments]).encode() + b"\n")

    def answer(self) -> Any:
        """The answer to the oldest command that has none. Raises OSError if the node is gone or hangs."""
        line = self._answers.readline()
        if not line:
            raise OSError(f"node {self.pid} ended")
        return json.loads(line)

    def ask(self, command: str, *arguments: object) -> Any:
        """The answer to a command."""
        self.tell(command, *arguments)
        return self.answer()

    def signal(self, number: int) -> None:
        """Send a signal, and see the process end if it is SIGKILL."""
        os.kill(self.pid, number)
        if number == signal.SIGKILL:
            os.waitpid(self.pid, 0)

    def cpu(self) -> float:
        return cpu_seconds(self.pid)

    def rss(self) -> int:
        return rss(self.pid)

    def end(self) -> None:
        """Kill it if it still runs."""
        with suppress(ChildProcessError, ProcessLookupError):
            self.signal(signal.SIGKILL)
        self._answers.close()
        self._control.close()


class Fleet:
    """``count`` nodes that know nobody; they end with the ``with`` block."""

    def __init__(self, count: int) -> None:
        self.members: list[Member] = []
        self._count = count

    def __enter__(self) -> Fleet:
        try:
            for _ in range(self._count):
                self.members.append(Member(self.members))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        for member in self.members:
            member.end()


def each(members: Sequence[Member], command: str, *arguments: object) -> list[Any]:
    """The answers of all to one command, which they carry out at the same time."""
    for member in members:
        member.tell(command, *arguments)
    return [member.answer() for member in members]
