"""The log: configuration of structlog, the level, the last events, and reports of recurring problems.

structlog is configured once: it writes one JSON object or one coloured line per event to standard error. Lines that
standard error does not take are dropped, because a full disk below the log must not end the sidecar.

The level can change while the process runs. structlog makes it a part of the loggers' class, and loggers are made once
and kept, because an event below the level must cost almost nothing. So a change replaces the methods of that one class:
all existing loggers follow, and an event below the level costs no more than before.

The last events are also kept in memory, for ``spegel-consul events``.

A rule about all events belongs here. An event of one module, and its fields, belong to that module.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any

import structlog
import trio

from spegel_consul.observable import Observable

LEVELS = ("debug", "info", "warning", "error")
KEPT = 1000
"""Number of events that are kept."""
_METHODS = (
    *("debug", "info", "warning", "warn", "error", "exception", "critical", "fatal", "log", "msg"),
    *("is_enabled_for", "get_effective_level"),
)
_KINDS = 16  # of problems that one report remembers
_VARYING = re.compile(
    r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"  # IPv4[:port]
    r"|\[[0-9a-f:.]*:[0-9a-f:.]*(?:%\w+)?\](?::\d+)?"  # [IPv6]:port
    r"|\b(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+\b|\b\d+(?:\.\d+)? (?:ms|s)\b"  # a duration; hours are news
    r"|\b(?:0x)?(?=[a-f-]*\d)[0-9a-f]{8,}(?:-[0-9a-f]{4,})*\b",  # a hexadecimal id
    re.IGNORECASE,
)


class Level:
    """The least level of logged events: the configured one, or another one that was set since."""

    def __init__(self) -> None:
        self.configured = "info"
        self.current = "info"
        self.logger: Any = type("Logger", (structlog.make_filtering_bound_logger(logging.DEBUG),), {})

    def set(self, name: str) -> None:
        """Log events of level ``name`` and above from now on. Raises ValueError."""
        if name not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}")
        source = structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[name.upper()])
        for method in _METHODS:
            if hasattr(source, method):
                setattr(self.logger, method, getattr(source, method))
        self.current = name
        logging.getLogger().setLevel(max(logging.getLevelNamesMapping()[name.upper()], logging.WARNING))

    def toggle(self) -> None:
        """Switch to debug, or back to the configured level."""
        self.set(self.configured if self.current == "debug" else "debug")


class Events:
    """The last events, numbered from 1."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=KEPT)  # as JSON, which needs less memory than a dictionary
        self.last = 0
        self._told = Observable(0)

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A processor of structlog: keeps the event and passes it on."""
        self.last += 1
        plain = {name: _plain(value) for name, value in event.items()}
        self._kept.append((self.last, json.dumps({**plain, "number": self.last}).encode()))
        if _in_trio():  # because grpc's threads log too; a waiter gets their events with the next one of Trio's thread
            self._told.set(self.last)
        return event

    def since(self, number: int) -> list[dict[str, object]]:
        """Kept events after ``number``, the oldest first; all if ``number`` is from an earlier process."""
        if number > self.last:
            number = 0
        return [json.loads(event) for at, event in list(self._kept) if at > number]

    async def wait(self, number: int, seconds: float) -> list[dict[str, object]]:
        """Like :meth:`since`, but wait up to ``seconds`` for a first event."""
        found = self.since(number)
        if not found:
            with trio.move_on_after(seconds):
                await self._told.changed(self._told.value)
            found = self.since(number)
        return found


class LossyStream:
    """Writes lines to a file descriptor, and drops those that it does not take.

    It has no buffer, because the interpreter would try to write the rest at its end, and fail with status 120.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_cut = False  # whether the last line lacks its end

    def write(self, line: str) -> None:
        """Write ``line``, which begins with a line feed if the last one was cut off."""
        whole = ("\n" * self._is_cut + line).encode("utf-8", "backslashreplace")
        left = whole
        with suppress(OSError):
            while left:
                left = left[os.write(self._fd, left) :]
        if len(left) < len(whole):
            self._is_cut = bool(left)

    def flush(self) -> None:
        """Nothing: there is no buffer."""


class ProblemReport:
    """Logs a problem once: when it begins, when one of another kind follows and, with ``over``, when it has ended.

    A task with repeated attempts passes each outcome to :meth:`tell`. ``fields`` are added to each event, and ``field``
    is the name of the problem's field.

    Problems are of one kind if their texts differ only in addresses, durations and ids, because Consul's agent names
    another server or port at each attempt while the servers are away. The servers may also fail in two ways in turn,
    so with ``over`` each kind is logged once until the end. Without it, an operator who makes a change takes silence
    for success, so there a kind is logged again after another one.
    """

    def __init__(
        self, logger: Any, event: str, over: str | None = None, *, field: str = "problem", **fields: object
    ) -> None:
        self._logger, self._event, self._over, self._field, self._fields = logger, event, over, field, fields
        self._logged: set[str] = set()  # kinds
        self.problem: str | None = None
        """The problem of the last attempt; None after a success."""

    def tell(self, problem: str | None, *, expected: str | None = None) -> None:
        """Take the outcome of an attempt: a problem, or None.

        ``expected``: an event of level info, logged instead of the warning.
        """
        before, self.problem = self.problem, problem
        if problem == before:
            return
        if problem is None:
            self._logged.clear()
            if self._over is not None:
                self._logger.info(self._over, **self._fields)
            return
        kind = _VARYING.sub("…", problem)
        if kind in self._logged:
            return
        if self._over is None or len(self._logged) == _KINDS:
            self._logged.clear()
        self._logged.add(kind)
        if expected is not None:
            self._logger.info(expected, **{self._field: problem}, **self._fields)
        else:
            self._logger.warning(self._event, **{self._field: problem}, **self._fields)


level = Level()
events = Events()


def configure(name: str = "info", fmt: str = "json") -> None:
    """Send all events of level ``name`` and above to standard error as ``json`` or for a ``console``.

    The standard library's loggers (grpc, hypercorn, libp2p) are routed to the same place, warnings and up.
    """
    renderer: structlog.typing.Processor
    if fmt == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        # no rich tracebacks, because they print local variables, which may hold a token
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if fmt == "json":
        processors.append(structlog.processors.format_exc_info)
    processors.append(events)
    stream: Any = LossyStream((sys.stderr or sys.stdout).fileno())  # a process may have no standard error
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=level.logger,
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level.configured = name
    level.set(name)
    # py-libp2p logs seven lines for each stream that a peer resets; the adapter logs one event instead
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)


def _in_trio() -> bool:
    return trio.lowlevel.in_trio_run()


def _plain(value: object) -> object:
    """The value of an event's field, as JSON can represent it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return repr(value)
