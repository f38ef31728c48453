"""``Result``: a value that one task brings for others, which may stop waiting without stopping the task.

A waiter whose deadline passes has left at that moment, although its task runs only later in the same pass of the event
loop; a value that is set in between reaches no waiter.  So ``unwanted`` depends on whether a waiter returned with the
value, not on whether there were waiters when it came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from spegel_consul.peers import RingError

_T = TypeVar("_T")


class Result(Generic[_T]):
    """Set or failed once; later calls change nothing.

    ``unwanted`` is called once with each value that reaches no waiter: because all waiters were cancelled, because
    there is none, or because the result is done already. So with ``unwanted``, waiting must begin before the value is
    set.
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
            self._discard_if_unwanted()
        elif self._unwanted is not None:
            self._unwanted(value)

    def fail(self, error: RingError) -> None:
        if not self.done:
            self._error = error
            self._event.set()

    async def wait(self) -> _T:
        """The value. Raises the error that :meth:`fail` was given."""
        self._waiting += 1
        try:
            await self._event.wait()
            self._taken = True
        finally:
            self._waiting -= 1
            self._discard_if_unwanted()
        if self._error is not None:
            raise type(self._error)(*self._error.args)  # a new instance, because several tasks may raise it
        return self._value

    def _discard_if_unwanted(self) -> None:
        if self._unwanted is not None and self.done and self._error is None and not (self._taken or self._waiting):
            self._taken = True
            self._unwanted(self._value)
