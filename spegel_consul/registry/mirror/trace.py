# What became of each request that was looked up at peers?
#
# The mirror writes attributes of a Trace as the request goes its way: no call, no lock, no text is made.  Whatever a
# person or a program wants to know of it - durations, a waterfall, a line in the log - is worked out by the reader.
# Times are of time.perf_counter(); `began` alone is a time of day.  A request that is over moves from the live ones to
# the last hundred, so that what is kept has an end however busy the node is.

"""The life of mirrored requests, as it happened: the live ones, and the last ones."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count
from types import TracebackType
from typing import Any, Protocol

from spegel_consul.oci.errors import OCIError, RangeInvalid

KEPT = 100
"""How many requests that are over are remembered."""

HIT, MISS, CUT, GONE, REFUSED = "hit", "miss", "cut", "gone", "refused"
"""Outcomes: served by a peer; nobody had it; begun and not completed; the client went away; an unsatisfiable range."""

UNKNOWN_REGISTRY = "unknown"
"""Stands for the registry of a digest that was asked for without one."""

TraceHeaders = tuple[tuple[str, str], ...]
"""Header fields that identify a request, and that the peer which serves it gets too."""

_IDENTITIES = (
    ("x-request-id", re.compile(rb"[!-~]{1,200}\Z")),
    ("traceparent", re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")),  # W3C Trace Context, 3.2
)


def trace_headers(headers: Mapping[bytes, bytes]) -> TraceHeaders:
    """The identifying ones of a client's header fields, as far as they are well-formed."""
    found = ((name, form, headers.get(name.encode(), b"")) for name, form in _IDENTITIES)
    return tuple((name, value.decode()) for name, form, value in found if form.match(value))


def as_fields(identity: TraceHeaders) -> dict[str, str]:
    """The same for a line in the log: ``request_id``, ``traceparent``."""
    return {name.removeprefix("x-").replace("-", "_"): value for name, value in identity}


class Progress(Protocol):
    """What knows how many bytes are still to come, and how many of those that came the client has got."""

    @property
    def left(self) -> int: ...

    @property
    def sent(self) -> int: ...


class Trace:
    """One request. The mirror assigns; 0.0 is a time that has not come."""

    # class attributes, so that a new one has only what is known at the start to be assigned
    trace_headers: TraceHeaders = ()
    client = ""
    """The address of a client on another machine, else ""."""
    looked_up = 0.0
    asked = 0.0
    connected = 0.0
    first_byte = 0.0
    verified = 0.0
    done = 0.0
    peer = ""
    size = 0
    bytes = 0
    progress: Progress | None = None
    resumed = 0
    outcome = ""
    error = ""

    def __init__(self, traces: Traces, number: int, reference: Any, key: str, kind: str, method: str) -> None:
        self._traces = traces
        self.number = number
        self.reference = reference
        self.key = key
        self.kind = kind
        self.method = method
        self.began = time.time()
        self.started = time.perf_counter()

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if exc is None:
            self._traces.end(self, HIT)
        elif isinstance(exc, OCIError):
            self._traces.end(self, REFUSED if isinstance(exc, RangeInvalid) else MISS, exc.message)
        else:
            # a cut says so itself; anything else that ends an answer early is the client's departure
            self._traces.end(self, getattr(exc, "outcome", GONE), str(exc))

    @property
    def registry(self) -> str:
        """The registry that the client meant, or :data:`UNKNOWN_REGISTRY`."""
        return self.reference.registry or UNKNOWN_REGISTRY

    @property
    def request_id(self) -> str:
        """What the client called the request, or ""."""
        return next((value for name, value in self.trace_headers if name == "x-request-id"), "")

    def received(self) -> int:
        """Bytes of the body that have come by now."""
        return self.size - self.progress.left if self.progress is not None else self.bytes

    def sent(self) -> int:
        """Bytes of the body that the client has got by now; of what passed through this process, those that came."""
        return self.progress.sent if self.progress is not None else self.bytes

    def to_json(self, now: float | None = None) -> dict[str, object]:
        """For people and programs: times are milliseconds since the request came, None while they have not come."""
        end = self.done or now or time.perf_counter()
        received = self.received()
        # the time that the bytes took; of what came whole with its head, the time of the whole request
        streamed = end - (self.first_byte or self.started)
        return {
            "number": self.number,
            "began": round(self.began, 3),
            "method": self.method,
            "kind": self.kind,
            "reference": str(self.reference),
            "key": self.key,
            "registry": self.registry,
            "peer": self.peer or None,
            "request_id": self.request_id or None,
            "lookup_ms": self._since(self.looked_up),
            "asked_ms": self._since(self.asked),
            "connect_ms": self._since(self.connected),
            "first_byte_ms": self._since(self.first_byte),
            "verified_ms": self._since(self.verified),
            "done_ms": self._since(self.done),
            "elapsed_ms": self._since(end),
            "size": self.size,
            "bytes": received,
            "bytes_per_second": round(received / streamed) if streamed > 0 else None,
            "resumed": self.resumed,
            "outcome": self.outcome or None,
            "error": self.error or None,
        }

    def _since(self, at: float) -> float | None:
        return round((at - self.started) * 1000, 3) if at else None


class Traces:
    """The requests that are under way, and the last ``kept`` that are over."""

    def __init__(self, kept: int = KEPT) -> None:
        self.live: dict[int, Trace] = {}
        self.over: deque[Trace] = deque(maxlen=kept)
        self.on_end: Callable[[Trace], None] | None = None
        self._numbers = count(1)

    def begin(self, reference: Any, key: str, kind: str, method: str, trace_headers: TraceHeaders = ()) -> Trace:
        """A request came that has to be looked up; use as a context, which it ends with."""
        number = next(self._numbers)
        trace = self.live[number] = Trace(self, number, reference, key, kind, method)
        trace.trace_headers = trace_headers
        return trace

    def end(self, trace: Trace, outcome: str, error: str = "") -> None:
        """It is over; nothing is written to it any more."""
        trace.done = time.perf_counter()
        if trace.progress is not None:
            trace.bytes = trace.size - trace.progress.left
            trace.progress = None  # it holds sockets and buffers
        trace.outcome = outcome
        trace.error = error
        self.live.pop(trace.number, None)
        self.over.append(trace)
        if self.on_end is not None:
            self.on_end(trace)
