# All that can be locked is locked, by the very command of docs/security.md: TLS between nodes and from the runtime, a
# password, and only nodes that Consul knows are asked.

"""A pull through secured sidecars."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lab.certificates import Authority
from lab.containerd import PullError
from lab.image import MIB
from lab.process import until

pytestmark = pytest.mark.real


def recipe(**files: Path) -> dict[str, str | Path]:
    """The flags that docs/security.md gives, with these files for those that it names."""
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    found = re.search(r"```sh\nspegel-consul registry (.*?)```", text, re.DOTALL)
    assert found is not None
    words = iter(shlex.split(found[1].replace("\\\n", " ").replace("=", " ")))
    flags = {flag.removeprefix("--").replace("-", "_"): next(words) for flag in words}
    named = {flag: word for flag, word in flags.items() if flag.endswith("_file")}
    assert named == {flag: path.name for flag, path in files.items()}
    del flags["data_dir"]  # each node of the lab has its own
    return {**flags, **files}


def check_of_the_jobs(ip: str) -> dict[str, str]:
    """The job's check for ``/readyz`` with what jobs/README.md adds for certificates, as Nomad registers it."""
    text = (Path(__file__).parents[2] / "jobs/README.md").read_text()
    (paragraph,) = [each for each in text.split("\n\n") if each.startswith("With `--tls-cert-file`")]
    added = dict(re.findall(r'`(\w+) = "(\w+)"`', paragraph))
    address = {"registry": f"{ip}:5000", "metrics": "127.0.0.1:9090"}[added.get("port", "registry")]
    url = f"{added.get('protocol', 'http')}://{address}/readyz"
    return {"ID": "job", "Name": "ready", "HTTP": url, "Interval": "1s", "Timeout": "2s"}


def test_a_pull_with_certificates_and_a_password(cluster, image) -> None:
    lab = cluster(2)
    app = image(layers=[4 * MIB, 100_000])
    authority = Authority.make(lab.dir, "nodes")
    nodes_crt, users = authority.path.rename(lab.dir / "nodes.crt"), lab.dir / "users"
    users.write_text("node:a secret\n")
    users.chmod(0o600)
    for node in lab:
        cert, key = authority.issue(node.dir, "issued", node.ip)
        node.start_sidecar(
            wait=False,
            **recipe(
                tls_cert_file=cert.rename(node.dir / "node.crt"),
                tls_key_file=key.rename(node.dir / "node.key"),
                tls_ca_file=nodes_crt,
                basic_auth_file=users,
            ),
        )

    def secured(password: str) -> str:
        shown = base64.b64encode(f"node:{password}".encode()).decode()
        return f"""[host."https://{{ip}}:5000"]
  capabilities = ["pull", "resolve"]
  ca = "{nodes_crt}"
  [host."https://{{ip}}:5000".header]
    authorization = "Basic {shown}"
"""

    for node in lab:
        until(
            lambda node=node: len(node.dig("spegel.service.consul")) == 2, timeout=30, what="both pass Consul's checks"
        )
        # the metrics port is bound to this machine, where its agent asks for it
        until(lambda node=node: len(node.dig("spegel-metrics.service.consul")) == 2, timeout=30, what="these too")
        node.containerd.write_hosts("_default", secured("a secret").format(ip=node.ip))
    lab[0].consul.put("/v1/agent/check/register", check_of_the_jobs(lab[0].ip))
    until(
        lambda: lab[0].consul.get("/v1/agent/checks")["job"]["Status"] == "passing",
        timeout=10,
        what="a check as jobs/README.md tells to write it passes",
    )
    lab[0].containerd.import_image(app.tar)

    def local(node, path: str, method: str = "GET") -> bytes:
        return node.netns.request(method, "127.0.0.1", 9090, path, timeout=30).body

    until(lambda: b"docker.io" in local(lab[0], "/metrics"), timeout=10, what="the image is announced")
    with pytest.raises(OSError, match="refused"):
        lab[1].request("/metrics", to=lab[0], port=9090)
    for shown, status in (([], "401"), (["--user", "node:another"], "401"), (["--user", "node:a secret"], "200")):
        url = f"https://{lab[0].ip}:5000/v2/library/app/manifests/v1?ns=docker.io"
        argv = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--cacert", nodes_crt]
        assert lab[1].netns.run(*argv, *shown, url) == status

    lab[1].containerd.write_hosts("_default", secured("another").format(ip=lab[1].ip))
    with pytest.raises(PullError):
        lab[1].containerd.pull_cri(app.name, timeout=20)

    def measured() -> dict[str, Any]:
        return json.loads(local(lab[1], f"/api/measure?image={app.name}", "POST"))

    # a measurement has the node's own password and authorities; the catalog that names the other node comes to it late
    until(lambda: measured()["problem"] is None, timeout=20, what="the image can be measured")
    document = measured()
    assert {piece["digest"]: piece["source_node"] for piece in document["pieces"]} == dict.fromkeys(
        app.digests, lab[0].name
    )
    for words in (["status"], ["pull", app.name], ["peers", "--json"]):
        argv = lab[1].netns.inside([sys.executable, "-m", "spegel_consul", *words, "--node=127.0.0.1"])
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert "a secret" not in done.stdout
        assert lab[1].name in done.stdout or words[0] == "pull"

    lab[1].containerd.write_hosts("_default", secured("a secret").format(ip=lab[1].ip))
    lab[1].containerd.pull_cri(app.name)

    assert app.digests <= lab[1].containerd.content()
    for node in lab:
        assert "Traceback" not in node.sidecar.log()
        assert "a secret" not in node.sidecar.log()
        assert base64.b64encode(b"node:a secret").decode() not in node.sidecar.log()
