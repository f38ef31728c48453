"""The limits of a node, from its flags to the bytes: a sidecar with a layout, asked over loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from lab.process import HANG, ending, until

from spegel_consul.oci.digest import Digest

LAYER = os.urandom(4 << 20)
PEER = {"X-Spegel-Mirrored": "true"}


def layout(directory: Path) -> Path:
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes, media_type: str) -> dict[str, object]:
        digest = Digest.of(content)
        (blobs / digest.encoded).write_bytes(content)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(b"{}", "application/vnd.oci.image.config.v1+json"),
        "layers": [put(LAYER, "application/vnd.oci.image.layer.v1.tar")],
    }
    entry = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"io.containerd.image.name": "docker.io/library/app:v1"}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return directory


def test_peers_get_what_the_flags_allow_and_the_own_runtime_gets_all(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "spegel_consul", "registry", "--bootstrap-kind=static", "--skip-preflight"]
    argv += [f"--{name}-addr=127.0.0.1:0" for name in ("registry", "router", "metrics")]
    argv += [f"--data-dir={tmp_path}", "--static-bootstrap-peers=127.0.0.1:1", "--hang-timeout=0"]
    argv += [f"--layout-path={layout(tmp_path / 'layout')}", "--max-upload=1", "--upload-rate-limit=3MiB/s"]
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(argv, stdout=log, stderr=log)
    with ending(started) as process:

        def url() -> str:
            said = (tmp_path / "log").read_text()
            assert process.poll() is None, said
            lines = [json.loads(line) for line in said.splitlines() if '"started"' in line]
            return str(lines[0]["registry"]) if lines else ""

        until(url, timeout=HANG, what="it has started")
        blob = f"{url()}/v2/library/app/blobs/{Digest.of(LAYER)}?ns=docker.io"

        begun = threading.Event()

        def took(headers: dict[str, str]) -> float:
            began = time.monotonic()
            with urllib.request.urlopen(urllib.request.Request(blob, headers=headers), timeout=HANG) as answer:
                begun.set()
                assert answer.read() == LAYER
            return time.monotonic() - began

        def refused() -> str:
            try:
                with urllib.request.urlopen(urllib.request.Request(blob, headers=PEER), timeout=HANG) as answer:
                    answer.read()
            except urllib.error.HTTPError as exc:
                assert exc.code == 503
                return str(exc.headers["X-Spegel-Busy"])
            return ""

        took({})
        begun.clear()
        lasted: list[float] = []
        peer = threading.Thread(target=lambda: lasted.append(took(PEER)))
        peer.start()
        assert begun.wait(HANG)
        hint = refused()
        took({})
        peer.join(HANG)
    assert float(hint) > 0
    # 4 MiB at 3 MiB/s, without a burst of 0.1 s; a machine that has too much work only makes it longer
    assert lasted[0] > 1.1
