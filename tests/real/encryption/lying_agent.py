# A proxy in front of a real agent and not an agent of its own, so that registration, election and catalog are real.

"""A Consul agent that lies about certificates: ``lying_agent.py LISTEN UPSTREAM DIRECTORY``.

``leaf.json`` and ``roots.json`` in DIRECTORY are the answers to questions for a certificate and for the authorities, as
long as they are there. A blocking query is answered when its file changes. All else is as the agent at UPSTREAM says.
"""

from __future__ import annotations

import http.client
import http.server
import re
import sys
import time
from pathlib import Path

_LEAF, _ROOTS = "/v1/agent/connect/ca/leaf/", "/v1/agent/connect/ca/roots"
_LONGEST = 10.0  # seconds that a blocking query lasts here
_WAIT = re.compile(r"\bwait=[^&]*")
_NOT_PASSED_ON = ("connection", "transfer-encoding", "content-length", "host")


class LyingAgent(http.server.BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    upstream = ""
    directory = Path()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = self.path.partition("?")[0]
        name = "leaf.json" if asked.startswith(_LEAF) else "roots.json" if asked == _ROOTS else ""
        file = self.directory / name
        if name and file.exists():
            self._lie(file)
            return
        if name:  # a lie that comes meanwhile is heard soon
            self.path = _WAIT.sub("wait=1s", self.path)
        self._pass_on(body)

    def _lie(self, file: Path) -> None:
        known = f"index={_index(file)}" in self.path
        deadline = time.monotonic() + _LONGEST
        while known and f"index={_index(file)}" in self.path and time.monotonic() < deadline:
            time.sleep(0.05)
        if not file.exists():  # the client asks again, and then the agent
            self.send_error(500)
            return
        self._send(200, [("X-Consul-Index", str(_index(file)))], file.read_bytes())

    def _pass_on(self, body: bytes) -> None:
        connection = http.client.HTTPConnection(self.upstream, timeout=120)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED_ON}
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            given = [(name, value) for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED_ON]
            self._send(answer.status, given, answer.read())
        finally:
            connection.close()

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _index(file: Path) -> int:
    """Which is in a header and in a query, so it is small enough for both."""
    return file.stat().st_mtime_ns // 1_000_000 if file.exists() else 0


def main() -> None:
    listen, LyingAgent.upstream, directory = sys.argv[1:]
    LyingAgent.directory = Path(directory)
    host, _, port = listen.rpartition(":")
    http.server.ThreadingHTTPServer.daemon_threads = True
    http.server.ThreadingHTTPServer((host, int(port)), LyingAgent).serve_forever()


if __name__ == "__main__":
    main()
