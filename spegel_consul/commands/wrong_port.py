"""Which port was asked instead of a sidecar's metrics port, so that an error can say so.

A node has three ports, and the most frequent mistake is one of the other two. After an answer that is no sidecar's, the
same address is asked what it is. A further server that people take for a sidecar belongs here.
"""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

from spegel_consul.http import blocking_client
from spegel_consul.http.answer_bounds import AnswerRefused

_WITHIN = 2.0
_LONGEST = 64 << 10
_ROUTER = b"/multistream/1.0.0\n"


def name_of(node: str, *, speaks_http: bool) -> str | None:
    """What answers at the URL ``node``, in words; None if that is not known. Takes seconds at most; does not raise.

    ``speaks_http``: whether the server's answer was one in HTTP.
    """
    if not speaks_http:
        return "the router of a spegel-consul (--router-addr)" if _says_first(node, _ROUTER) else None
    status, headers, _ = _get(node, "/v2/")
    if status in (200, 401) and "registry/2.0" in headers:
        ours = _get(node, "/id")
        return "the registry of a spegel-consul (--registry-addr)" if _is_id(ours) else "an image registry"
    status, _, body = _get(node, "/v1/status/leader")
    if status == 200 and body.startswith(b'"'):
        return "Consul or Nomad"
    return None


def _get(node: str, path: str) -> tuple[int, str, bytes]:
    """The status, the field that registries have, and the body; zero and empty without an answer."""
    try:
        with blocking_client.ask("GET", f"{node}{path}", connect=_WITHIN, silence=_WITHIN, within=_WITHIN) as answer:
            return answer.status, answer.header("docker-distribution-api-version"), answer.body(_LONGEST)
    except (blocking_client.NoAnswer, blocking_client.AnswerLate, AnswerRefused):
        return 0, "", b""


def _is_id(answer: tuple[int, str, bytes]) -> bool:
    try:
        return answer[0] == 200 and "ID" in json.loads(answer[2])[0]
    except (ValueError, TypeError, LookupError, RecursionError):
        return False


def _says_first(node: str, expected: bytes) -> bool:
    """Whether the server speaks first, and says this."""
    url = urlsplit(node)
    try:
        with socket.create_connection((url.hostname or "", url.port or 80), _WITHIN) as sock:
            sock.settimeout(0.5)
            return expected in sock.recv(64)
    except (OSError, UnicodeError):
        return False
