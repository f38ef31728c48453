"""A nursery that is opened when the first task needs it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType

import trio


class LateNursery:
    """The context is that of a nursery, if :meth:`open` is called in it; at its end all tasks are cancelled.

    A nursery costs a turn of the event loop at least, and a miss needs none. The first call of :meth:`open` must not be
    made in a cancel scope that is opened after the context, because scopes end in the reverse order.
    """

    def __init__(self) -> None:
        self._context: AbstractAsyncContextManager[trio.Nursery, bool | None] | None = None
        self._nursery: trio.Nursery | None = None

    async def open(self) -> trio.Nursery:
        """Return the nursery."""
        if self._nursery is None:
            self._context = trio.open_nursery()
            self._nursery = await self._context.__aenter__()
        return self._nursery

    async def __aenter__(self) -> LateNursery:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        if self._context is None or self._nursery is None:
            return None
        self._nursery.cancel_scope.cancel()
        return await self._context.__aexit__(kind, exc, tb)
