"""Typed errors of Consul's HTTP API. All derive from :class:`ConsulError`; ``str()`` is one line for people.

There is one class per reaction of the callers.  The client library has one exception for every 5xx, passes on the
exceptions of its HTTP client, and returns true or false values for a 404.  So each answer is classified here once, by
its status and its text; the texts are those of Consul 1.8 to 1.22.

The classes to which the election reacts are errors of ``election/lock_store`` too.

A new reaction to an answer of Consul needs a class here, and a case in :func:`error_for`.
"""

from __future__ import annotations

import re

from spegel_consul.consul.api.duration import parse_duration
from spegel_consul.election.lock_store import LockError, NotPermitted, SessionEnded, SessionUnknown, TTLRefused

_EXAMINED = 1024
"""Characters of an answer's text that patterns are matched against."""


class ConsulError(LockError):
    """Consul could not be asked, or refused."""


class ConsulUnavailable(ConsulError):
    """No connection to the agent: refused, reset, name not resolved, TLS."""


class ConsulTimeout(ConsulUnavailable):
    """No answer within the time that the call allows."""


class AccessDenied(ConsulError, NotPermitted):
    """401 or 403: the token is unknown or lacks a right. Says nothing about locks or sessions."""


class NotFound(ConsulError, SessionUnknown):
    """404 from an endpoint whose regular answers do not include it."""


class RequestRefused(ConsulError):
    """Another 4xx: the request is wrong, for instance plain HTTP to an HTTPS port."""


class RateLimited(ConsulError):
    """429: too many connections or requests from this client."""


class ServerError(ConsulError):
    """5xx that is none of the cases below."""


class NoClusterLeader(ServerError):
    """The servers have no leader at the moment, or the agent knows no server."""


class InvalidSession(ServerError, SessionEnded):
    """A lock operation named a session that Consul does not have."""


class InvalidSessionTTL(ServerError, TTLRefused):
    """The TTL is outside the servers' limits: ``shortest`` and ``longest`` in seconds, None if the answer has none."""

    def __init__(self, message: str, shortest: float | None = None, longest: float | None = None) -> None:
        super().__init__(message)
        self.shortest, self.longest = shortest, longest

    def nearest(self, ttl: float) -> float:
        return min(max(ttl, self.shortest or 10.0), self.longest or 86400.0)


class CheckNotPassing(ServerError):
    """The servers do not know a check of the new session, or it is critical."""


class ConnectDisabled(ServerError):
    """Consul has no certificate authority, because Connect is not enabled."""


class UnexpectedAnswer(ConsulError):
    """The answer is not one of Consul's: a proxy's page, a wrong path, a missing header."""


def error_for(status: int, text: str) -> ConsulError | None:
    """The error that an answer stands for; None for 2xx."""
    if 200 <= status < 300:
        return None
    text = text[:_EXAMINED]
    line = " ".join(text.split())
    if len(line) > 160:
        line = line[:157] + "..."
    message = f"{status} {line}".rstrip()
    if "nvalid Session TTL" in text:
        return InvalidSessionTTL(message, *_limits(text))
    if status in (401, 403):
        return AccessDenied(message)
    if status == 404:
        return NotFound(message)
    if status == 429:
        return RateLimited(message)
    if 400 <= status < 500:
        return RequestRefused(message)
    if status < 500:
        return UnexpectedAnswer(message)
    if "ermission denied" in text or "ACL not found" in text:
        return AccessDenied(message)  # because servers before 1.5 wrap it in a 500 if an agent forwards the request
    if "Unknown service" in text:  # of an agent with ACLs; later ones answer 404
        return NotFound(message)
    if "invalid session" in text:
        return InvalidSession(message)
    if "Missing check" in text or "is in critical state" in text:
        return CheckNotPassing(message)
    if "Connect must be enabled" in text:
        return ConnectDisabled(message)
    if "No cluster leader" in text or "leadership" in text or "No known Consul servers" in text:
        return NoClusterLeader(message)
    return ServerError(message)


def _limits(text: str) -> tuple[float | None, float | None]:
    found = re.search(r"\[([^=\]]+)=([^\]]+)\]", text)  # "must be between [10s=24h0m0s]"
    try:
        return (parse_duration(found[1]), parse_duration(found[2])) if found else (None, None)
    except ValueError:
        return None, None
