# All that can be locked is locked: TLS between nodes and from the runtime, a password, and only nodes that Consul
# knows are asked.

"""A pull through secured sidecars."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import pytest
from lab.certificates import Authority
from lab.containerd import PullError
from lab.image import MIB
from lab.process import until

pytestmark = pytest.mark.real


def test_a_pull_with_certificates_and_a_password(cluster, image) -> None:
    lab = cluster(2)
    app = image(layers=[4 * MIB, 100_000])
    authority = Authority.make(lab.dir)
    users = lab.dir / "users"
    users.write_text("node:a secret\n")
    for node in lab:
        cert, key = authority.issue(lab.dir, node.name, node.ip)
        node.start_sidecar(
            wait=False,
            tls_cert_file=cert,
            tls_key_file=key,
            tls_ca_file=authority.path,
            basic_auth_file=users,
            peer_policy="catalog",
        )

    def secured(password: str) -> str:
        shown = base64.b64encode(f"node:{password}".encode()).decode()
        return f"""[host."https://{{ip}}:5000"]
  capabilities = ["pull", "resolve"]
  ca = "{authority.path}"
  [host."https://{{ip}}:5000".header]
    authorization = "Basic {shown}"
"""

    for node in lab:
        until(
            lambda node=node: len(node.dig("spegel.service.consul")) == 2, timeout=30, what="both pass Consul's checks"
        )
        node.containerd.write_hosts("_default", secured("a secret").format(ip=node.ip))
    lab[0].containerd.import_image(app.tar)
    until(lambda: "docker.io" in lab[0].sidecar.metrics(), timeout=10, what="the image is announced")

    lab[1].containerd.write_hosts("_default", secured("another").format(ip=lab[1].ip))
    with pytest.raises(PullError):
        lab[1].containerd.pull_cri(app.name, timeout=20)
    measured = lab[1].request(f"/api/measure?image={app.name}", method="POST", port=9090, timeout=30)
    document = json.loads(measured.body)
    assert document["problem"] is None, "a measurement has the node's own password and authorities"
    assert {piece["digest"]: piece["source_node"] for piece in document["pieces"]} == dict.fromkeys(
        app.digests, lab[0].name
    )
    for words in (["status"], ["pull", app.name], ["peers", "--json"]):
        argv = lab[0].netns.inside([sys.executable, "-m", "spegel_consul", *words, f"--node={lab[1].ip}"])
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
