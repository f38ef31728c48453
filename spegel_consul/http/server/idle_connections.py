"""Idle connections, and answers that need no task.

Trio arms a descriptor anew for each wait, and wakes a task for each ready one. Together, this costs twice as much as an
answer from memory. So idle connections wait together, in an epoll of this module where they stay armed. Trio watches
that epoll, and one task reads from all ready connections. A request whose answer is in memory is answered immediately.
With any other request, the task of the connection is woken, and the connection belongs to that task until it is idle
again.

A new rule about waiting for the next request belongs here; the deadline of the wait is in
:mod:`spegel_consul.http.server.idle_timer`.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from dataclasses import dataclass

import outcome
import structlog
import trio

from spegel_consul.http.server.idle_timer import IdleTimer
from spegel_consul.zerocopy.send import FileAnswer, Truncated, send_bytes

log = structlog.get_logger(__name__)

RECEIVE = 1 << 16
"""Bytes of one read of a request."""

_ROUND = 64  # largest number of connections to serve before other tasks may run
_ROUND_SECONDS = 0.002  # and the largest time for them

AtOnce = Callable[[bytes, bool], bytes | FileAnswer | None]
"""Returns the complete answer to the received bytes, or None if they need a task; must not block.

A file answer is sent at once too, and is closed when it has been sent.

The flag says whether the client is on this machine.
"""


@dataclass(slots=True, eq=False)
class IdleConnection:
    """A connection that waits for its next request.

    ``local``: whether its client is on this machine; ``leaving()``: whether the connection is to end once it is idle.
    """

    sock: trio.socket.SocketType
    timer: IdleTimer
    local: bool
    leaving: Callable[[], bool]
    _task: trio.lowlevel.Task | None = None
    _fd: int = -1


class IdleConnections:
    """The idle connections of a server. Requests are answered by ``at_once`` if possible. Needs :meth:`run`."""

    def __init__(self, at_once: AtOnce) -> None:
        self._at_once = at_once
        self._poll = select.epoll()
        self._all_idle: dict[int, IdleConnection] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the idle connections, until cancelled."""
        task_status.started()
        try:
            while True:
                await trio.lowlevel.wait_readable(self._poll.fileno())
                end = trio.current_time() + _ROUND_SECONDS
                for fd, _ in self._poll.poll(0, _ROUND):
                    self._serve(fd)
                    if trio.current_time() > end:
                        break  # the others are still ready in the next round
        finally:
            trio.lowlevel.notify_closing(self._poll.fileno())
            self._poll.close()

    async def next_request(self, idle: IdleConnection) -> bytes:
        """Wait for received bytes that the connection's own task has to answer; none if its client has left.

        Raises Truncated, OSError, trio.TooSlowError or trio.ClosedResourceError.
        """
        while True:
            data, unsent = await self._wait(idle)
            if not unsent:
                return data
            idle.timer.idle = False
            if isinstance(unsent, FileAnswer):
                try:
                    await unsent.send_rest(idle.sock)
                finally:
                    unsent.close()
            else:
                await send_bytes(idle.sock, unsent)
            if idle.leaving():
                return b""
            idle.timer.touch()

    def dismiss(self, idle: IdleConnection) -> None:
        """End the wait of a connection as if its client had left, because the connection is about to be closed."""
        if idle._task is not None:
            self._wake(idle, b"", b"")

    async def _wait(self, idle: IdleConnection) -> tuple[bytes, bytes | FileAnswer]:
        idle._fd = idle.sock.fileno()
        self._poll.register(idle._fd, select.EPOLLIN)
        self._all_idle[idle._fd] = idle
        idle._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._leave(idle)
            return trio.lowlevel.Abort.SUCCEEDED

        found: tuple[bytes, bytes | FileAnswer] = await trio.lowlevel.wait_task_rescheduled(abort)
        idle.timer.release()
        return found

    def _serve(self, fd: int) -> None:
        idle = self._all_idle.get(fd)
        if idle is None:
            return
        try:
            data = os.read(fd, RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            answer = self._at_once(data, idle.local) if data else None
        except Exception:
            log.exception("answering at once failed")
            answer = None
        if answer is None:
            self._wake(idle, data, b"")
            return
        if isinstance(answer, FileAnswer):
            self._send_file(idle, answer)
            return
        try:
            sent = os.write(fd, answer)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._wake(idle, b"", b"")
            return
        if sent == len(answer):
            idle.timer.touch()
        else:
            self._wake(idle, b"", answer[sent:])

    def _send_file(self, idle: IdleConnection, answer: FileAnswer) -> None:
        try:
            whole = answer.send_now(idle.sock)
        except (OSError, Truncated):
            answer.close()
            self._wake(idle, b"", b"")
            return
        if whole:
            answer.close()
            idle.timer.touch()
        else:
            self._wake(idle, b"", answer)

    def _wake(self, idle: IdleConnection, data: bytes, unsent: bytes | FileAnswer) -> None:
        task = idle._task
        assert task is not None
        self._leave(idle)
        idle.timer.hold()  # until the task runs, which may be after one that closes idle connections
        trio.lowlevel.reschedule(task, outcome.Value((data, unsent)))

    def _leave(self, idle: IdleConnection) -> None:
        idle._task = None
        del self._all_idle[idle._fd]
        if not self._poll.closed:
            self._poll.unregister(idle._fd)
