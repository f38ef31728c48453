"""Traces of mirrored requests: the live ones, and the last ones that are over.

The mirror assigns attributes of a :class:`Trace` during the request, without calls, locks or text. The readers compute
durations, a waterfall or a line in the log from the attributes. Times are those of time.perf_counter(), except for
``began``, which is a time of day. At its end a request moves from the live ones to the last hundred, so the memory for
traces is bounded.

The live requests are also all that wait for a lookup, a peer or a source. So they are looked at once a second here, and
those whose client has left are ended.

A new fact about a mirrored request belongs here as an attribute, and as a field of :meth:`Trace.to_json`.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from types import TracebackType
from typing import Any, Protocol

import trio

from spegel_consul.oci.errors import OCIError, RangeInvalid

KEPT = 100
"""Number of finished requests that are remembered."""

HIT, MISS, CUT, GONE, REFUSED = "hit", "miss", "cut", "gone", "refused"
"""Outcomes: served by a peer; no peer had it; begun and not completed; the client went away; unsatisfiable range."""

UNKNOWN_REGISTRY = "unknown"
"""The registry of requests for a digest that name no registry."""

_LOOK_EVERY = 1.0  # seconds

TraceHeaders = tuple[tuple[str, str], ...]
"""Header fields that identify a request; they are passed on to the peer."""

_IDENTITIES = (
    ("x-request-id", re.compile(rb"[!-~]{1,200}\Z")),
    ("traceparent", re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")),  # W3C Trace Context, 3.2
)


def trace_headers(headers: Mapping[bytes, bytes]) -> TraceHeaders:
    """Return the well-formed trace headers among a client's header fields."""
    found = ((name, form, headers.get(name.encode(), b"")) for name, form in _IDENTITIES)
    return tuple((name, value.decode()) for name, form, value in found if form.match(value))


def as_fields(identity: TraceHeaders) -> dict[str, str]:
    """Return trace headers as fields of a line in the log: ``request_id``, ``traceparent``."""
    return {name.removeprefix("x-").replace("-", "_"): value for name, value in identity}


class Progress(Protocol):
    """The bytes of a body that are still to come, and the bytes that have been sent to the client."""

    @property
    def left(self) -> int: ...

    @property
    def sent(self) -> int: ...


class Trace:
    """One request. The mirror assigns the attributes; 0.0 is a time that has not come."""

    # defaults are class attributes, so that a new trace costs only the assignments of what is known at the start
    trace_headers: TraceHeaders = ()
    client = ""
    """The address of a client on another machine, else ""."""
    looked_up = 0.0
    claimed = 0.0
    """The time at which the keeper's verdict about the content was there."""
    followed = ""
    """``host:port`` of the registry that sent the body, or a part of it, while it was still downloading it."""
    asked = 0.0
    connected = 0.0
    first_byte = 0.0
    verified = 0.0
    done = 0.0
    tag_age: int | None = None
    """The age in seconds that the peer told of a tag."""
    tag_check = ""
    """The result of the check of a tag at its registry."""
    peer = ""
    size = 0
    bytes = 0
    progress: Progress | None = None
    resumed = 0
    outcome = ""
    error = ""
    _waiting: trio.CancelScope | None = None
    _check_client: Callable[[], object] | None = None
    _sent = -1  # bytes at the last look

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
            # a TransferCut has an outcome of its own; any other exception is the client's departure
            self._traces.end(self, getattr(exc, "outcome", GONE), str(exc))

    @contextmanager
    def while_there(self, check_client: Callable[[], object]) -> Iterator[None]:
        """Cancel the context if the client leaves, and raise ConnectionResetError then; :meth:`Traces.run` must run.

        ``check_client`` raises OSError if the client has left.
        """
        with trio.CancelScope() as waiting:
            self._waiting, self._check_client = waiting, check_client
            try:
                yield
            finally:
                self._waiting = self._check_client = None  # they refer to the connection, and the trace is kept
        if waiting.cancelled_caught:
            raise ConnectionResetError("the client has left")

    def look_at_client(self) -> None:
        """Cancel the request's :meth:`while_there` if its client has left, and has taken nothing since the last look.

        A client that has closed its side of the connection only still takes the bytes.
        """
        sent, before = self.sent(), self._sent
        self._sent = sent
        if self._waiting is not None and self._check_client is not None and sent == before:
            try:
                self._check_client()
            except (OSError, ValueError):  # ValueError: the connection was closed
                self._waiting.cancel()

    @property
    def registry(self) -> str:
        """The registry of the reference, or :data:`UNKNOWN_REGISTRY`."""
        return self.reference.registry or UNKNOWN_REGISTRY

    @property
    def request_id(self) -> str:
        """The client's ID of the request, or ""."""
        return next((value for name, value in self.trace_headers if name == "x-request-id"), "")

    def received(self) -> int:
        """Return the number of bytes of the body that have come so far."""
        return self.size - self.progress.left if self.progress is not None else self.bytes

    def sent(self) -> int:
        """Return the number of bytes of the body that have been sent so far, or that have come, if that is unknown."""
        return self.progress.sent if self.progress is not None else self.bytes

    def to_json(self, now: float | None = None) -> dict[str, object]:
        """Return the trace as JSON. Times are milliseconds since the start of the request, or None."""
        end = self.done or now or time.perf_counter()
        received = self.received()
        # the rate counts from the first byte, or from the start of the request if that time is unknown
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
            "tag_age": self.tag_age,
            "tag_check": self.tag_check or None,
            "request_id": self.request_id or None,
            "lookup_ms": self._since(self.looked_up),
            "claimed_ms": self._since(self.claimed),
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
            "followed": self.followed or None,
            "outcome": self.outcome or None,
            "error": self.error or None,
        }

    def _since(self, at: float) -> float | None:
        return round((at - self.started) * 1000, 3) if at else None


class Traces:
    """The live requests, and the last ``kept`` finished ones."""

    def __init__(self, kept: int = KEPT) -> None:
        self.live: dict[int, Trace] = {}
        self.over: deque[Trace] = deque(maxlen=kept)
        self.on_end: Callable[[Trace], None] | None = None
        self._numbers = count(1)

    async def run(self) -> None:
        """Look once a second whether the clients of the live requests are there, until cancelled.

        Nobody else reads from a client's socket while its request waits for a lookup, a peer or a source.
        """
        while True:
            await trio.sleep(_LOOK_EVERY)
            for trace in list(self.live.values()):
                trace.look_at_client()

    def begin(self, reference: Any, key: str, kind: str, method: str, trace_headers: TraceHeaders = ()) -> Trace:
        """Begin the trace of a request; the trace is a context, and ends with it."""
        number = next(self._numbers)
        trace = self.live[number] = Trace(self, number, reference, key, kind, method)
        trace.trace_headers = trace_headers
        return trace

    def end(self, trace: Trace, outcome: str, error: str = "") -> None:
        """End the trace; it does not change any more."""
        trace.done = time.perf_counter()
        if trace.progress is not None:
            trace.bytes = trace.size - trace.progress.left
            trace.progress = None  # dropped, because it refers to sockets and buffers
        trace.outcome = outcome
        trace.error = error
        self.live.pop(trace.number, None)
        self.over.append(trace)
        if self.on_end is not None:
            self.on_end(trace)
