"""``KeySearch``: the shell around one ``Lookup``, and the iterator of its providers.

It has no task: questions are sent when its context is entered and when an answer comes, by the task that brought the
answer.  The task that iterates waits for providers, and asks one more peer when the lookup says that it is time.

A rule about the choice of peers belongs in ``dht/iterative_lookup``; the meaning of an answer is given by ``router``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from types import TracebackType

import trio

from spegel_consul.peers import Provider
from spegel_consul.ring.dht.iterative_lookup import AnswerTimes, Lookup
from spegel_consul.ring.dht.messages import Message
from spegel_consul.ring.members.membership import Told

Ask = Callable[[bytes, Told], None]
"""Asks a peer, and calls the function with its answer later."""


class KeySearch:
    """Iterates over the providers that ``lookup`` finds.

    ``answered(peer, answer)`` is to offer the providers of an answer, and ``finish()`` those that are left at the end;
    both yield them by :meth:`found`. It is in
    ``open_ones`` from the start of the context to its own end.
    """

    def __init__(
        self,
        lookup: Lookup,
        times: AnswerTimes,
        ask: Ask,
        answered: Callable[[KeySearch, bytes, Message], None],
        finish: Callable[[KeySearch], None],
        open_ones: set[KeySearch],
    ) -> None:
        self.lookup = lookup
        self._times = times
        self._ask = ask
        self._answered = answered
        self._finish = finish
        self._open_ones = open_ones
        self._providers: deque[Provider] = deque()
        self._over = False
        self._wake = trio.Event()
        self._sleeps_until = math.inf  # the task that iterates, if it waits

    def __enter__(self) -> KeySearch:
        self._open_ones.add(self)
        self.go_on()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.end()

    def __aiter__(self) -> KeySearch:
        return self

    async def __anext__(self) -> Provider:
        while not self._providers:
            if self._over:
                raise StopAsyncIteration
            self._wake, self._sleeps_until = trio.Event(), self.lookup.wake_at
            with trio.move_on_at(self._sleeps_until):
                await self._wake.wait()
            if not self._wake.is_set():
                self.go_on()
        return self._providers.popleft()

    def found(self, provider: Provider) -> None:
        """Yield ``provider``."""
        self._providers.append(provider)
        self._wake.set()

    def go_on(self) -> None:
        """Ask the peers that are to be asked now, or end."""
        if self.lookup.done:
            self._finish(self)
            self.end()
            return
        now = trio.current_time()
        for peer in self.lookup.ask(now):
            self._ask(peer, self._told(peer, now))
        if self.lookup.wake_at < self._sleeps_until:  # an answer has named new candidates
            self._wake.set()

    def end(self) -> None:
        """Yield nothing more that is not found yet, and ask nobody."""
        self._over = True
        self._open_ones.discard(self)
        self._wake.set()

    def _told(self, peer: bytes, start: float) -> Told:
        def told(answer: Message | None) -> None:
            now = trio.current_time()
            if answer is not None:
                self._times.took(now - start)
            if self._over:
                return
            try:
                if answer is None:
                    self.lookup.failed(peer, now)
                else:
                    self.lookup.answered(peer, now)
                    self._answered(self, peer, answer)
            finally:
                self.go_on()

        return told
