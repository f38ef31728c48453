"""Fair turns on the event loop: clients on other machines begin a bounded amount of work in each pass of the loop.

Trio runs every ready task once before it looks at sockets and timers again. A thousand connections that each have a
request ready make one pass of a second, and the node's own runtime needs several passes for one answer. So a connection
from another machine takes a turn before it begins work: its start, each request, its end. The number of turns in a pass
follows from the duration of the passes: fewer turns after a long pass, more after a short one. Waiting connections get
turns by address, in rotation, so that an address with many connections waits for its own.

Rules about *when* work of other machines begins belong here; rules about *how much* of it there is belong to
:mod:`spegel_consul.http.server.connection_limits`.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

import trio

MOST = 16
"""Largest number of turns in one pass of the event loop."""

PASS = 0.005
"""Seconds that a pass may take; a longer pass reduces the number of turns."""


class Turns:
    """Turns for clients on other machines. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._most = self._left = MOST
        self._began: float | None = None
        """Start of the current pass, if turns have been taken in it."""
        self._waiting: OrderedDict[str, deque[trio.Event]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Number of connections that wait for a turn."""
        return sum(map(len, self._waiting.values()))

    async def take(self, address: str) -> None:
        """Wait for a turn of the client at ``address``; return at once while the pass has turns left."""
        if self._left > 0 and not self._waiting:
            self._left -= 1
            self._await_next_pass()
            return
        turn = trio.Event()
        self._waiting.setdefault(address, deque()).append(turn)
        self._await_next_pass()
        try:
            await turn.wait()
        finally:
            if not turn.is_set():
                self._forget(address, turn)

    def _forget(self, address: str, turn: trio.Event) -> None:
        queue = self._waiting[address]
        queue.remove(turn)
        if not queue:
            del self._waiting[address]

    def _await_next_pass(self) -> None:
        if self._began is None:
            self._began = self._clock()
            # run_sync_soon() makes the loop run the callback in the next pass
            trio.lowlevel.current_trio_token().run_sync_soon(self._next_pass)

    def _next_pass(self) -> None:
        assert self._began is not None
        lasted, self._began = self._clock() - self._began, None
        self._most = max(1, self._most // 2) if lasted > PASS else min(MOST, self._most + 1)
        self._left = self._most
        while self._left and self._waiting:
            address, queue = self._waiting.popitem(last=False)
            queue.popleft().set()
            if queue:
                self._waiting[address] = queue
            self._left -= 1
        if self._waiting:
            self._await_next_pass()
