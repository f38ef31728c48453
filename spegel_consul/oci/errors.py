"""Typed errors with the code and HTTP status that the distribution specification gives them.

An error is raised where its cause is known, and becomes an HTTP answer in one place for each path
(:mod:`spegel_consul.registry.answer_head` and :mod:`spegel_consul.registry.asgi_path`).  The message is for people and
says what to do.  A new error that a client sees belongs here.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import ClassVar


class OCIError(Exception):
    """Base of everything that becomes an error body (distribution-spec, "Error Codes").

    ``code`` is the spec's code, ``status`` the HTTP status it is sent with.
    """

    code: ClassVar[str] = "UNKNOWN"
    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR

    def __init__(self, message: str, detail: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail

    def body(self) -> bytes:
        """The JSON error body: ``{"errors": [{"code", "message", "detail"?}]}``."""
        entry: dict[str, object] = {"code": self.code, "message": self.message}
        if self.detail:
            entry["detail"] = self.detail
        return json.dumps({"errors": [entry]}).encode()


class DigestInvalid(OCIError, ValueError):
    """The digest's text is malformed, or its algorithm is not one that we can verify."""

    code = "DIGEST_INVALID"
    status = HTTPStatus.BAD_REQUEST


class NameInvalid(OCIError, ValueError):
    """The repository or registry name is malformed."""

    code = "NAME_INVALID"
    status = HTTPStatus.BAD_REQUEST


class TagInvalid(OCIError, ValueError):
    """The tag is malformed (distribution-spec has no code of its own for tags; registries use this one)."""

    code = "TAG_INVALID"
    status = HTTPStatus.BAD_REQUEST


class BlobUnknown(OCIError):
    """Neither this node nor a reachable peer has the blob."""

    code = "BLOB_UNKNOWN"
    status = HTTPStatus.NOT_FOUND


class ManifestUnknown(OCIError):
    """Neither this node nor a reachable peer has the manifest."""

    code = "MANIFEST_UNKNOWN"
    status = HTTPStatus.NOT_FOUND


class NameUnknown(OCIError):
    """The path is not one of the distribution API, or the registry is not mirrored here."""

    code = "NAME_UNKNOWN"
    status = HTTPStatus.NOT_FOUND


class Unauthorized(OCIError):
    """The client showed no credentials, or others than those that this registry knows."""

    code = "UNAUTHORIZED"
    status = HTTPStatus.UNAUTHORIZED
    challenge = b'Basic realm="spegel-consul"'


class Unsupported(OCIError):
    """The method is not one that a read-only mirror offers."""

    code = "UNSUPPORTED"
    status = HTTPStatus.METHOD_NOT_ALLOWED


class RangeInvalid(OCIError):
    """No byte of the content lies in the requested range (RFC 9110, 15.5.17)."""

    code = "RANGE_INVALID"
    status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE

    def __init__(self, size: int) -> None:
        super().__init__(f"the requested range lies outside of the content of {size} bytes")
        self.size = size


class Busy(OCIError):
    """This node sends as many bodies to peers as it may. Another peer is to be asked, or this one after ``seconds``."""

    code = "TOOMANYREQUESTS"
    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class PageInvalid(OCIError, ValueError):
    """The number of entries of a list is none."""

    code = "PAGINATION_NUMBER_INVALID"
    status = HTTPStatus.BAD_REQUEST


class TooManyRanges(OCIError):
    """A request has more ranges than are served at once; clients ask for one at a time then (RFC 9110, 14.2)."""

    code = "RANGE_INVALID"
    status = HTTPStatus.BAD_REQUEST
