# A proxy and not a registry of its own, so that what was pushed to the real one is there, and whatever is not spoilt
# is as the real one says.

"""A registry that fails in one way: ``bad_upstream.py LISTEN UPSTREAM refuse-all|refuse-blobs|cut|flip``.

refuse-all: 401 for everything, as for a client without credentials. refuse-blobs: 403 for blobs. cut: the first answer
with a large blob ends in its middle. flip: one bit in the middle of each large blob is wrong.
"""

from __future__ import annotations

import http.client
import http.server
import re
import socket
import sys
import threading
from typing import ClassVar

LARGE = 1 << 20
_PIECE = 1 << 16
_PASSED_ON = ("Content-Type", "Content-Length", "Content-Range", "Docker-Content-Digest", "Accept-Ranges", "ETag")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class BadUpstream(http.server.BaseHTTPRequestHandler):
    """One request to the bad registry."""

    protocol_version = "HTTP/1.1"
    upstream = ""
    way = ""
    lock = threading.Lock()
    cut: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        if self.way == "refuse-all":
            return self._refuse(401)
        if self.way == "refuse-blobs" and "/blobs/" in path:
            return self._refuse(403)
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        try:
            asked = {name: value for name in ("Accept", "Range") if (value := self.headers.get(name)) is not None}
            connection.request(self.command, self.path, headers=asked)
            self._pass_on(connection.getresponse(), path)
        finally:
            connection.close()

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="bad upstream"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _pass_on(self, answer: http.client.HTTPResponse, path: str) -> None:
        self.send_response(answer.status)
        for name in _PASSED_ON:
            if (value := answer.headers.get(name)) is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        part = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        at = int(part[1]) if part else 0
        size = int(part[2]) if part else int(answer.headers.get("Content-Length", 0))
        spoilt = "/blobs/" in path and size > LARGE
        end = size // 2 if spoilt and self.way == "cut" and self._is_first(path) else size
        wrong = size // 2 if spoilt and self.way == "flip" else -1
        while at < end and (piece := answer.read(min(_PIECE, end - at))):
            if at <= wrong < at + len(piece):
                piece = piece[: wrong - at] + bytes([piece[wrong - at] ^ 1]) + piece[wrong - at + 1 :]
            self.wfile.write(piece)
            at += len(piece)
        if end < size:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _is_first(self, path: str) -> bool:
        with self.lock:
            first = path not in self.cut
            self.cut.add(path)
        return first


def main() -> None:
    listen, BadUpstream.upstream, BadUpstream.way = sys.argv[1:]
    host, _, port = listen.rpartition(":")
    http.server.ThreadingHTTPServer.request_queue_size = 128
    http.server.ThreadingHTTPServer((host, int(port)), BadUpstream).serve_forever()


if __name__ == "__main__":
    main()
