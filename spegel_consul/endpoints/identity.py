# Both ports answer /id: that of the metrics for whoever asks, that of the registry for those who want to know whom they
# ask, because it is the one that has TLS, and mutual TLS if the operator wants it.

"""``/id``: how to join through this node."""

from __future__ import annotations

import json
from collections.abc import Callable

from quart import Response
from quart_trio import QuartTrio

from spegel_consul.peers import PeerInfo

PATH = "/id"


def add_to(app: QuartTrio, me: Callable[[], PeerInfo]) -> None:
    """Answer ``GET /id`` with Spegel's JSON array of ``{"ID", "Addrs"}``, which has one entry, ``me()``."""

    @app.get(PATH)
    async def identity() -> Response:
        this = me()
        return Response(
            json.dumps([{"ID": this.id, "Addrs": list(this.addrs)}]), content_type="application/json; charset=utf-8"
        )
