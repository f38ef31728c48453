"""The quart application of the registry's port: every answer that is not content.

These are the API's version check, health, and errors for unknown paths and methods. A new fixed path of the
registry's port belongs here; content paths belong to :mod:`spegel_consul.registry.asgi_path`.
"""

from __future__ import annotations

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from spegel_consul.endpoints import health
from spegel_consul.oci.errors import NameUnknown, OCIError, Unsupported


def build_app(problem: health.Problem, warnings: health.Warnings = tuple) -> QuartTrio:
    """Return the application.

    ``problem()`` returns one line with the reason why this node can't serve now, or None if it can. ``warnings()``
    returns lines about other things that an operator should look at.
    """
    app = QuartTrio("spegel_consul.registry")
    # no timeout for answers, because a slow client may take any time for a large blob
    app.config["RESPONSE_TIMEOUT"] = None

    @app.route("/v2/", strict_slashes=False)
    async def version_check() -> Response:
        """The API's version check (distribution-spec, "Determining Support"). It never asks for credentials."""
        return Response(
            b"{}", content_type="application/json", headers={"docker-distribution-api-version": "registry/2.0"}
        )

    @app.route("/livez")
    async def alive() -> Response:
        """Liveness: the process answers."""
        return health.alive()

    @app.route("/readyz")
    async def ready() -> Response:
        """Readiness: the node can serve its content, or the reason why not."""
        return health.ready(problem, warnings)

    @app.errorhandler(HTTPException)
    async def http_error(exc: HTTPException) -> Response:
        error: OCIError
        if isinstance(exc, MethodNotAllowed):
            error = Unsupported(f"{request.method} is not supported: this registry is a read-only mirror")
        else:
            error = NameUnknown("expected /v2/, /v2/<name>/manifests/…, /v2/<name>/blobs/…, /livez or /readyz")
        answer = Response(error.body(), status=error.status, content_type="application/json")
        if isinstance(error, Unsupported):
            answer.headers["Allow"] = "GET, HEAD"
        return answer

    return app
