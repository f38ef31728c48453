"""``Absence``: logs once that a containerd is away, however many namespaces of it have a store.

Each namespace has a session of its own with the same containerd, and all of them end together. A rule about what the
log says of their ends belongs here.
"""

from __future__ import annotations

import structlog

log = structlog.get_logger(__name__)


class Absence:
    """The namespaces that are cut off now, with the reasons; shared by the stores of one containerd."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def began(self, namespace: str, reason: str) -> None:
        """The session of a namespace has ended, or could not begin; the same reason of several is logged once."""
        if namespace not in self._reasons and reason not in self._reasons.values():
            log.warning("containerd is away", reason=reason)
        self._reasons[namespace] = reason

    def ended(self, namespace: str) -> bool:
        """The session of a namespace goes on; returns whether it was away."""
        return self._reasons.pop(namespace, None) is not None
