# Everything of the registry's port that is not content: the API's version check, health, and errors.

"""The quart application of the registry's port."""

from __future__ import annotations

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from spegel_consul.endpoints import health
from spegel_consul.oci.errors import NameUnknown, OCIError, Unsupported


def build_app(problem: health.Problem, warnings: health.Warnings = tuple) -> QuartTrio:
    """``problem()`` says in one line why this node can't serve now, or None when it can.

    ``warnings()`` gives lines about what else an operator should look at.
    """
    app = QuartTrio("spegel_consul.registry")
    # a client may read a large blob for as long as it likes
    app.config["RESPONSE_TIMEOUT"] = None

    @app.route("/v2/", strict_slashes=False)
    async def version_check() -> Response:
        """The API's version check (distribution-spec, "Determining Support"). Never challenges."""
        return Response(
            b"{}", content_type="application/json", headers={"docker-distribution-api-version": "registry/2.0"}
        )

    @app.route("/livez")
    async def alive() -> Response:
        """The process answers."""
        return health.alive()

    @app.route("/readyz")
    async def ready() -> Response:
        """The node can serve what it has; the reason if not."""
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
