"""The application of the metrics port: metrics, health and the router's id; all else is the API and the pages.

Prometheus, load balancers and routers call a node by names of their own, so these paths accept any name. Their answers
are the same for each client, except that warnings name other nodes, which a site with a rebound name must not read. A
new path for machines belongs here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from spegel_consul.endpoints import health, identity
from spegel_consul.endpoints.late_app import LateApp
from spegel_consul.endpoints.plain_app import Answer, PlainApp, Question
from spegel_consul.web import metric_readings
from spegel_consul.web.access.own_names import names_of
from spegel_consul.web.copies.own_copies import OwnCopies
from spegel_consul.web.node_views import Node

if TYPE_CHECKING:
    from quart_trio import QuartTrio


def build_app(node: Node, copies: OwnCopies) -> PlainApp:
    """Metrics, health, the router's id, and, imported when they are asked first, the API and the pages of ``node``."""

    def load() -> Callable[[], QuartTrio]:
        from spegel_consul.web import web_app

        return lambda: web_app.build_app(node, copies)

    app, names = PlainApp(LateApp(load)), names_of(node)
    metric_readings.connect(node)
    node.metrics.images_only_here.set_function(lambda: copies.only_here)

    async def scrape(_: Question) -> Answer:
        return Answer(200, generate_latest(node.metrics.registry), CONTENT_TYPE_LATEST)

    def warnings(question: Question) -> Sequence[str]:
        return node.warnings() if names.have(question.headers.get("host", "")) else ()

    app.add("/metrics", scrape)
    health.add_to(app, node.problem, warnings)
    identity.add_to(app, lambda: node.ring.me)
    return app
