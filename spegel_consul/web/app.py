"""The quart application of the metrics port."""

from __future__ import annotations

import json

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from quart import Response
from quart_trio import QuartTrio

from spegel_consul.metrics import Metrics
from spegel_consul.ring import Router


def build_app(metrics: Metrics, router: Router) -> QuartTrio:
    """Prometheus metrics at ``/metrics``, liveness at ``/livez``, and this node's router at ``/id``."""
    app = QuartTrio("spegel_consul.web")

    @app.route("/metrics")
    async def scrape() -> Response:
        """Prometheus' text format."""
        return Response(generate_latest(metrics.registry), content_type=CONTENT_TYPE_LATEST)

    @app.route("/livez")
    async def alive() -> Response:
        """The process answers."""
        return Response("ok\n", content_type="text/plain; charset=utf-8")

    @app.route("/id")
    async def identity() -> Response:
        """How to join through this node: Spegel's JSON array of ``{"ID", "Addrs"}``, one entry."""
        me = router.me
        return Response(
            json.dumps([{"ID": me.id, "Addrs": list(me.addrs)}]), content_type="application/json; charset=utf-8"
        )

    return app
