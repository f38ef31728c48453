"""The application of the registry's port for every answer that is not content.

These are the API's version check, health, and errors for unknown paths and methods. A new fixed path of the
registry's port belongs here; content paths belong to :mod:`spegel_consul.registry.asgi_path`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spegel_consul.endpoints import health
from spegel_consul.endpoints.plain_app import Answer, PlainApp, Question, answering
from spegel_consul.oci.errors import NameUnknown, OCIError, Unsupported


def build_app(problem: health.Problem, warnings: Callable[[], Sequence[str]] = tuple) -> PlainApp:
    """Return the application.

    ``problem()`` returns one line with the reason why this node can't serve now, or None if it can. ``warnings()``
    returns lines about other things that an operator should look at.
    """
    app = PlainApp(answering(_unknown), _unsupported)
    app.add("/v2/", _version_check)
    app.add("/v2", _version_check)
    health.add_to(app, problem, lambda _: warnings())
    return app


async def _version_check(_: Question) -> Answer:
    """The API's version check (distribution-spec, "Determining Support"). It never asks for credentials."""
    return Answer(200, b"{}", "application/json", ((b"docker-distribution-api-version", b"registry/2.0"),))


async def _unknown(_: Question) -> Answer:
    return _error(NameUnknown("expected /v2/, /v2/<name>/manifests/…, /v2/<name>/blobs/…, /livez or /readyz"))


async def _unsupported(question: Question) -> Answer:
    error = Unsupported(f"{question.method} is not supported: this registry is a read-only mirror")
    return _error(error, (b"allow", b"GET, HEAD"))


def _error(error: OCIError, *headers: tuple[bytes, bytes]) -> Answer:
    return Answer(error.status, error.body(), "application/json", headers)
