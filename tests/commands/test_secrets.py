"""A sidecar that knows a secret of every kind says none of them, at the level that says most, and passes none on."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lab.ports import free_port
from lab.process import HANG, ending, until

OF_OURS = ("consul-token-1", "consul-pass-2", "nomad-token-3", "url-pass-4", "peer-pass-5")
OF_CLIENTS = ("client-auth-6", "client-cookie-7", "client-proxy-8")


class Recorder(BaseHTTPRequestHandler):
    """Plays Consul, Nomad and a list of peers, and refuses everybody."""

    seen: list[str] = []  # noqa: RUF012

    def answer(self) -> None:
        self.seen.append(f"{self.command} {self.path}\n{self.headers}")
        body = b"Permission denied"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def ask(url: str, **fields: str) -> int:
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in fields.items()})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=HANG) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code
    except OSError:
        return 0


def test_nothing_secret_is_logged_or_passed_on(tmp_path: Path) -> None:
    Recorder.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (tmp_path / "layout" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (tmp_path / "layout" / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": []}))
    (tmp_path / "users").write_text("node:peer-pass-5\n")
    registry, metrics = free_port(), free_port()
    argv = [sys.executable, "-m", "spegel_consul", "registry", "--log-level", "debug"]
    argv += ["--layout-path", str(tmp_path / "layout"), "--data-dir", str(tmp_path / "data")]
    argv += ["--registry-addr", f"127.0.0.1:{registry}", "--router-addr", f"127.0.0.1:{free_port()}"]
    argv += ["--metrics-addr", f"127.0.0.1:{metrics}", "--advertise-addr", "127.0.0.1"]
    argv += ["--bootstrap-kind", "consul,nomad-var,http", "--basic-auth-file", str(tmp_path / "users")]
    argv += ["--http-bootstrap-url", f"http://user:url-pass-4@127.0.0.1:{port}/id"]
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("CONSUL_", "NOMAD_"))},
        "CONSUL_HTTP_ADDR": f"127.0.0.1:{port}",
        "CONSUL_HTTP_TOKEN": "consul-token-1",
        "CONSUL_HTTP_AUTH": "consul:consul-pass-2",
        "NOMAD_ADDR": f"http://127.0.0.1:{port}",
        "NOMAD_TOKEN": "nomad-token-3",
    }
    shown = "Basic " + base64.b64encode(b"node:peer-pass-5").decode()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
    try:
        wanted = ("consul-token-1", "nomad-token-3", base64.b64encode(b"user:url-pass-4").decode())

        def all_are_asked() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            return all(any(secret in each for each in Recorder.seen) for secret in wanted)

        until(all_are_asked, timeout=HANG, what="each of the three has been shown its secret")
        path = "/v2/library/app/manifests/v1?ns=docker.io"
        secrets = {"cookie": "client-cookie-7", "proxy_authorization": "Basic client-proxy-8"}
        assert ask(f"http://127.0.0.1:{registry}{path}", authorization="Bearer client-auth-6", **secrets) == 401
        assert ask(f"http://127.0.0.1:{registry}{path}", authorization=shown, **secrets) == 404
        said = [ask(f"http://127.0.0.1:{metrics}/{page}") for page in ("metrics", "debug/web/", "id")]
        assert 200 in said
        pages = ""
        for page in ("metrics", "debug/web/", "api/v1/status", "api/v1/events"):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/{page}", timeout=HANG) as answer:
                    pages += answer.read().decode()
            except urllib.error.HTTPError as exc:
                exc.close()
    finally:
        with ending(process):
            process.terminate()
            process.wait(HANG)
        server.shutdown()
        server.server_close()
    told = (tmp_path / "log").read_text() + pages
    assert "Permission denied" in told, "the log says nothing of what went wrong"
    for secret in (*OF_OURS, *OF_CLIENTS):
        assert secret not in told
    for pair in ("consul:consul-pass-2", "user:url-pass-4", "node:peer-pass-5"):
        assert base64.b64encode(pair.encode()).decode() not in told
    for secret in ("peer-pass-5", *OF_CLIENTS, shown):
        assert not any(secret in each for each in Recorder.seen)
    # each gets its own credentials and nobody else's
    for each in Recorder.seen:
        assert ("consul-token-1" in each) + ("nomad-token-3" in each) + ("Basic dXNlcjp1cmw" in each) <= 1
    key = tmp_path / "data" / "private.key"
    assert key.stat().st_mode & 0o777 == 0o600
