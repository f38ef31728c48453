"""``/id``: the peer id and addresses of this node's router, for nodes that join through it.

Both ports answer it. The metrics port answers any client in clear text. The registry's port answers with TLS, and with
mutual TLS if it is configured, for nodes that must authenticate their bootstrap peers.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from spegel_consul.endpoints.plain_app import Answer, PlainApp, Question
from spegel_consul.peers import PeerInfo

PATH = "/id"


def add_to(app: PlainApp, me: Callable[[], PeerInfo]) -> None:
    """Answer ``GET /id`` with Spegel's JSON array of ``{"ID", "Addrs"}``, which has one entry, ``me()``."""

    async def identity(_: Question) -> Answer:
        this = me()
        body = json.dumps([{"ID": this.id, "Addrs": list(this.addrs)}]).encode()
        return Answer(200, body, "application/json; charset=utf-8")

    app.add(PATH, identity)
