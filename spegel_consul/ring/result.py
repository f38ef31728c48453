"""A value that a task will bring, for others who may stop waiting without stopping the task."""

from __future__ import annotations

from typing import Generic, TypeVar

import trio

from spegel_consul.ring import RingError

_T = TypeVar("_T")


class Result(Generic[_T]):
    """Set or failed once; later calls change nothing."""

    __slots__ = ("_error", "_event", "_value", "_waiting")

    def __init__(self) -> None:
        self._event = trio.Event()
        self._value: _T
        self._error: RingError | None = None
        self._waiting = 0

    @property
    def done(self) -> bool:
        return self._event.is_set()

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits."""
        return self._waiting == 0

    def set(self, value: _T) -> None:
        if not self.done:
            self._value = value
            self._event.set()

    def fail(self, error: RingError) -> None:
        if not self.done:
            self._error = error
            self._event.set()

    async def wait(self) -> _T:
        """The value. Raises what :meth:`fail` was given."""
        self._waiting += 1
        try:
            await self._event.wait()
        finally:
            self._waiting -= 1
        if self._error is not None:
            raise type(self._error)(*self._error.args)  # a fresh one: several may wait
        return self._value
