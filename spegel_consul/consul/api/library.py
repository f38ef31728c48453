# python-consul2 and py-consul are both heirs of python-consul: one import name, one way of building requests, but
# other places for the same things.  Either works; all that differs for us is told apart here.

"""What is used of the client library, whichever of the two is installed."""

from __future__ import annotations

from typing import Any

from consul import base

HTTPClient: Any = base.HTTPClient
Consul: Any = base.Consul
ConsulException: type[Exception] = base.ConsulException

try:
    from consul.callback import CB  # py-consul
except ImportError:
    from consul.base import CB

json_callback = CB.json


def endpoint(name: str) -> Any:
    """The class of an endpoint, such as ``KV``: of a module of its own, or nested in Consul."""
    return getattr(base, name, None) or getattr(base.Consul, name)


def response(code: int, headers: Any, text: str, content: bytes) -> Any:
    """What callbacks take; only python-consul2 wants the bytes beside the text."""
    fields = (code, headers, text, content)
    return base.Response(*fields[: len(base.Response._fields)])
