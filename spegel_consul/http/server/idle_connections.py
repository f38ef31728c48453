# Where connections wait for their next request.
#
# Trio arms a descriptor anew for each wait, and wakes a task for each that is ready: twice what it costs to answer a
# request whose answer is known.  So idle connections wait here together.  They stay armed in an epoll of our own,
# Trio watches that, and one task reads from all that are ready.  A request whose answer is at hand is answered on the
# spot; with any other its connection's task is woken, and then it is that task's alone until it comes back.

"""Idle connections, and answers that need no task."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from dataclasses import dataclass

import outcome
import structlog
import trio

from spegel_consul.http.server.idle_timer import IdleTimer
from spegel_consul.zerocopy.send import send_bytes

log = structlog.get_logger(__name__)

RECEIVE = 1 << 16
"""Bytes of one read of a request."""

_ROUND = 64  # connections served before everybody else in the process has a turn,
_ROUND_SECONDS = 0.002  # or as many as are within this time

AtOnce = Callable[[bytes, bool], bytes | None]
"""The whole answer to what was received, if it is a request whose answer is at hand; must not wait.

The flag says whether the client is on this machine.
"""


@dataclass(slots=True, eq=False)
class IdleConnection:
    """A connection that waits.

    ``local``: whether its client is on this machine; ``leaving()``: whether it is to end when it has nothing to do.
    """

    sock: trio.socket.SocketType
    timer: IdleTimer
    local: bool
    leaving: Callable[[], bool]
    _task: trio.lowlevel.Task | None = None
    _fd: int = -1


class IdleConnections:
    """Lets connections wait, and answers with ``at_once`` what it can. Needs :meth:`run`."""

    def __init__(self, at_once: AtOnce) -> None:
        self._at_once = at_once
        self._poll = select.epoll()
        self._all_idle: dict[int, IdleConnection] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve those who wait, until cancelled."""
        task_status.started()
        try:
            while True:
                await trio.lowlevel.wait_readable(self._poll.fileno())
                end = trio.current_time() + _ROUND_SECONDS
                for fd, _ in self._poll.poll(0, _ROUND):
                    idle = self._all_idle.get(fd)
                    if idle is not None:
                        self._serve(fd, idle)
                    if trio.current_time() > end:
                        break  # the others are still ready in the next round
        finally:
            trio.lowlevel.notify_closing(self._poll.fileno())
            self._poll.close()

    async def next_request(self, idle: IdleConnection) -> bytes:
        """Received bytes that are for the connection's own task to answer; none if its client has left.

        Raises OSError, trio.TooSlowError or trio.ClosedResourceError.
        """
        while True:
            data, unsent = await self._wait(idle)
            if not unsent:
                return data
            idle.timer.idle = False
            await send_bytes(idle.sock, unsent)
            if idle.leaving():
                return b""
            idle.timer.touch()

    def dismiss(self, idle: IdleConnection) -> None:
        """The connection is about to be closed: end its wait as if its client had left."""
        if idle._task is not None:
            self._wake(idle, b"", b"")

    async def _wait(self, idle: IdleConnection) -> tuple[bytes, bytes]:
        idle._fd = idle.sock.fileno()
        self._poll.register(idle._fd, select.EPOLLIN)
        self._all_idle[idle._fd] = idle
        idle._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._leave(idle)
            return trio.lowlevel.Abort.SUCCEEDED

        found: tuple[bytes, bytes] = await trio.lowlevel.wait_task_rescheduled(abort)
        return found

    def _serve(self, fd: int, idle: IdleConnection) -> None:
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

    def _wake(self, idle: IdleConnection, data: bytes, unsent: bytes) -> None:
        task = idle._task
        assert task is not None
        self._leave(idle)
        trio.lowlevel.reschedule(task, outcome.Value((data, unsent)))

    def _leave(self, idle: IdleConnection) -> None:
        idle._task = None
        del self._all_idle[idle._fd]
        if not self._poll.closed:
            self._poll.unregister(idle._fd)
