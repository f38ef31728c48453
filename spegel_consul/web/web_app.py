"""The quart application of the metrics port: it assembles the routes, which belong to the modules that it imports."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from quart import Response, redirect, request
from quart_trio import QuartTrio
from werkzeug.wrappers import Response as AnyResponse

from spegel_consul.endpoints import health, identity
from spegel_consul.web import api, debug, metric_readings, pages
from spegel_consul.web.access import request_origin
from spegel_consul.web.access.own_names import OwnNames
from spegel_consul.web.node_views import Node
from spegel_consul.web.preheat import preheat_routes
from spegel_consul.web.queries.questions import Measurer

LONGEST_BODY = 64 << 10
"""Bytes; a request's body is at most a name or a log level."""


def build_app(node: Node) -> QuartTrio:
    """Metrics, health, the router's id, the API and the status page of ``node``."""
    app = QuartTrio("spegel_consul.web", static_folder=None)
    app.config["RESPONSE_TIMEOUT"] = None  # /api/events waits for events
    app.config["MAX_CONTENT_LENGTH"] = LONGEST_BODY
    names = OwnNames(node.name, node.catalog_names, node.allowed_hosts)
    metric_readings.connect(node)
    identity.add_to(app, lambda: node.ring.me)
    measurer = Measurer(node)
    app.register_blueprint(api.blueprint(node, measurer))
    app.register_blueprint(preheat_routes.blueprint(node))
    app.register_blueprint(debug.blueprint())
    app.register_blueprint(pages.blueprint(node, measurer))

    @app.before_request
    async def only_by_own_names() -> Response | None:
        return request_origin.refusal(names)

    @app.get("/metrics")
    async def scrape() -> Response:
        """Prometheus' text format."""
        return Response(generate_latest(node.metrics.registry), content_type=CONTENT_TYPE_LATEST)

    @app.get("/livez")
    async def alive() -> Response:
        """Liveness: the process answers."""
        return health.alive()

    @app.get("/readyz")
    async def ready() -> Response:
        """Readiness: the node can serve its content; the reason if not."""
        # warnings name other nodes, which a site with a rebound name must not read
        named = names.have(request.headers.get("host", ""))
        return health.ready(node.problem, node.warnings if named else tuple)

    @app.get("/")
    async def home() -> AnyResponse:
        return redirect(pages.ROOT)

    return app
