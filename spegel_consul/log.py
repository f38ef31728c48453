# structlog, set up once: one JSON object or one coloured line per event, on standard error.
#
# The level can change while the process runs.  structlog bakes it into the class of the loggers, which are made once
# and kept, because an event below the level must cost next to nothing.  So the methods of that one class are exchanged:
# every logger that exists follows, and an event below the level costs what it did before.
#
# The last events are kept in memory as well, for those who look at the node from outside (`spegel-consul events`).

"""Events: where they go, from which level on, and the last ones."""

from __future__ import annotations

import logging
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import structlog
import trio

from spegel_consul.observable import Observable

LEVELS = ("debug", "info", "warning", "error")
KEPT = 1000
_METHODS = (
    *("debug", "info", "warning", "warn", "error", "exception", "critical", "fatal", "log", "msg"),
    *("is_enabled_for", "get_effective_level"),
)


class Level:
    """The least level of events that are logged: the one that was configured, or another one for a while."""

    def __init__(self) -> None:
        self.configured = "info"
        self.current = "info"
        self.logger: Any = type("Logger", (structlog.make_filtering_bound_logger(logging.DEBUG),), {})

    def set(self, name: str) -> None:
        """From now on ``name`` and above. Raises ValueError."""
        if name not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}")
        source = structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[name.upper()])
        for method in _METHODS:
            if hasattr(source, method):
                setattr(self.logger, method, getattr(source, method))
        self.current = name
        logging.getLogger().setLevel(max(logging.getLevelNamesMapping()[name.upper()], logging.WARNING))

    def toggle(self) -> None:
        """To debug, or back to what was configured."""
        self.set(self.configured if self.current == "debug" else "debug")


class Events:
    """The last events, numbered from 1."""

    def __init__(self) -> None:
        self._kept: deque[dict[str, object]] = deque(maxlen=KEPT)
        self.last = 0
        self._told = Observable(0)

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A processor of structlog: keeps the event and passes it on."""
        self.last += 1
        self._kept.append({**{name: _plain(value) for name, value in event.items()}, "number": self.last})
        if _in_trio():  # because grpc's threads log too; a waiter gets their events with the next one of Trio's thread
            self._told.set(self.last)
        return event

    def since(self, number: int) -> list[dict[str, object]]:
        """Those after ``number`` that are still kept, the oldest first; all of them if it is from another life."""
        if number > self.last:
            number = 0
        return [event for event in list(self._kept) if int(str(event["number"])) > number]

    async def wait(self, number: int, seconds: float) -> list[dict[str, object]]:
        """As :meth:`since`, but wait up to ``seconds`` for a first one."""
        found = self.since(number)
        if not found:
            with trio.move_on_after(seconds):
                await self._told.changed(self._told.value)
            found = self.since(number)
        return found


class ProblemReport:
    """Logs a problem once: when it begins, when it becomes another one and, with ``over``, when it has ended.

    A task that tries again and again tells it the outcome of each attempt. ``fields`` are added to each event, and
    ``field`` is the name under which the problem is logged.
    """

    def __init__(
        self, logger: Any, event: str, over: str | None = None, *, field: str = "problem", **fields: object
    ) -> None:
        self._logger, self._event, self._over, self._field, self._fields = logger, event, over, field, fields
        self.problem: str | None = None
        """What the last attempt met with; None when all is well."""

    def tell(self, problem: str | None, *, expected: str | None = None) -> None:
        """The last attempt met with ``problem``, or with none. An ``expected`` one is an event of its own, not a
        warning."""
        if problem == self.problem:
            return
        self.problem = problem
        if problem is None:
            if self._over is not None:
                self._logger.info(self._over, **self._fields)
        elif expected is not None:
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
        # the richer formats print local variables, and a token may be among them
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
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=level.logger,
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
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
    # when the process is out of file numbers, Trio says so ten times a second; the line is enough
    logging.getLogger("trio.serve_listeners").addFilter(_without_traceback)
    # py-libp2p logs seven lines for each stream that a peer resets; our own adapter says what matters
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)


async def follow_signal(
    told: Callable[[str], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """SIGUSR1 turns debug on and off; ``told`` hears the new level."""
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        task_status.started()
        async for _ in signals:
            level.toggle()
            told(level.current)


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


def _in_trio() -> bool:
    return trio.lowlevel.in_trio_run()


def _plain(value: object) -> object:
    """What JSON can carry of a value that an event came with."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return repr(value)
