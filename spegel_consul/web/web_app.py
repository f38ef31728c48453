"""The quart application of the API and the pages: it assembles the routes, which belong to the modules that it imports.

It is imported with the first request that :mod:`spegel_consul.web.monitoring` does not answer.
"""

from __future__ import annotations

from quart import Response, redirect
from quart_trio import QuartTrio
from werkzeug.wrappers import Response as AnyResponse

from spegel_consul.web import api, debug, pages
from spegel_consul.web.access import request_origin
from spegel_consul.web.access.own_names import names_of
from spegel_consul.web.cluster import cluster_page
from spegel_consul.web.cluster.cluster_survey import ClusterSurvey
from spegel_consul.web.cluster.metrics_ports import MetricsPorts
from spegel_consul.web.copies import copies_routes
from spegel_consul.web.copies.own_copies import OwnCopies
from spegel_consul.web.node_views import Node
from spegel_consul.web.preheat import preheat_routes
from spegel_consul.web.queries.questions import Measurer

LONGEST_BODY = 64 << 10
"""Bytes; a request's body is at most a name or a log level."""


def build_app(node: Node, copies: OwnCopies | None = None) -> QuartTrio:
    """The API and the status page of ``node``, for requests by one of its own names."""
    app = QuartTrio("spegel_consul.web", static_folder=None)
    app.config["RESPONSE_TIMEOUT"] = None  # /api/events waits for events
    app.config["MAX_CONTENT_LENGTH"] = LONGEST_BODY
    names = names_of(node)
    measurer = Measurer(node)
    ports = MetricsPorts(node)
    survey = ClusterSurvey(node, ports)
    app.register_blueprint(api.blueprint(node, measurer, survey))
    app.register_blueprint(copies_routes.blueprint(node, copies or OwnCopies(node)))
    app.register_blueprint(preheat_routes.blueprint(node))
    app.register_blueprint(debug.blueprint())
    app.register_blueprint(pages.blueprint(node, measurer, ports.pages))
    app.register_blueprint(cluster_page.blueprint(node, survey))

    @app.before_request
    async def only_by_own_names() -> Response | None:
        return request_origin.refusal(names)

    @app.get("/")
    async def home() -> AnyResponse:
        return redirect(pages.ROOT)

    return app
