"""structlog, set up once: one JSON object or one coloured line per event, on standard error."""

from __future__ import annotations

import logging
import sys

import structlog


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


def configure(level: str = "info", fmt: str = "json") -> None:
    """Send all events of ``level`` and above to standard error as ``json`` or for a ``console``.

    The standard library's loggers (grpc, hypercorn, libp2p) are routed to the same place, warnings and up.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
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
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
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
    root.setLevel(max(number, logging.WARNING))
    # when the process is out of file numbers, Trio says so ten times a second; the line is enough
    logging.getLogger("trio.serve_listeners").addFilter(_without_traceback)
    # py-libp2p logs seven lines for each stream that a peer resets; our own adapter says what matters
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
