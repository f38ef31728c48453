# A waiter whose deadline passes has left at that moment, though its task runs only later in the same pass of the loop:
# a value that is set in between reaches nobody.  So what counts is not who waits when the value comes, but whether
# somebody has gone away with it.

"""A value that a task will bring, for others who may stop waiting without stopping the task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from spegel_consul.peers import RingError

_T = TypeVar("_T")


class Result(Generic[_T]):
    """Set or failed once; later calls change nothing.

    ``unwanted`` is called, once, with a value that all waiters have left behind, and with one that is set when nobody
    waits or when the result is done already: with it, waiting has to begin before the value comes.
    """

    __slots__ = ("_error", "_event", "_taken", "_unwanted", "_value", "_waiting")

    def __init__(self, unwanted: Callable[[_T], None] | None = None) -> None:
        self._event = trio.Event()
        self._value: _T
        self._error: RingError | None = None
        self._waiting = 0
        self._taken = False
        self._unwanted = unwanted

    @property
    def done(self) -> bool:
        return self._event.is_set()

    def set(self, value: _T) -> None:
        if not self.done:
            self._value = value
            self._event.set()
            self._see_to_it()
        elif self._unwanted is not None:
            self._unwanted(value)

    def fail(self, error: RingError) -> None:
        if not self.done:
            self._error = error
            self._event.set()

    async def wait(self) -> _T:
        """The value. Raises what :meth:`fail` was given."""
        self._waiting += 1
        try:
            await self._event.wait()
            self._taken = True
        finally:
            self._waiting -= 1
            self._see_to_it()
        if self._error is not None:
            raise type(self._error)(*self._error.args)  # a fresh one: several may wait
        return self._value

    def _see_to_it(self) -> None:
        if self._unwanted is not None and self.done and self._error is None and not (self._taken or self._waiting):
            self._taken = True
            self._unwanted(self._value)
