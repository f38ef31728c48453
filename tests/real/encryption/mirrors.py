# Consul's own authority, with ACLs that deny what no token allows: a token of the policy in consul/policies is all that
# a sidecar has.  The first node pulls with a containerd, the two others serve an image layout.  A registry on the first
# node is the upstream, so a pull that no peer may serve is no failure, and the upstream's log tells of it.

"""Three nodes with TLS between them, and pulls that never stop."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lab import thorough
from lab.cluster import Cluster, MakeCluster, Node
from lab.connect_authority import ConnectAuthority
from lab.consul import ConsulOptions
from lab.containerd import PullError
from lab.image import MIB, MakeImage
from lab.process import until
from lab.sidecar import METRICS_PORT, Flag

from tests.real.consul.sidecars import log_events
from tests.real.test_pull import members, metric

RUNTIMES = ["21", "17"] if thorough.ALL else ["21"]

CONNECT = "connect { enabled = true }\n"
POLICY = Path(__file__).parents[3] / "consul/policies/spegel.hcl"
_PULL_TIMEOUT = 30.0


class Mirrors:
    """``puller`` with a containerd of ``version``, and two ``holders`` of ``app``."""

    def __init__(self, cluster: MakeCluster, image: MakeImage, version: str) -> None:
        self.lab: Cluster = cluster(
            3,
            consul=ConsulOptions(acl=True, hcl=CONNECT),
            containerd=[version, None, None],
        )
        self.puller, *self.holders = self.lab
        self.app = image(layers=[4 * MIB, 100], seed=3)
        self.upstream = self.lab.start_registry()
        self.upstream.push(self.app)
        self.token = token_of_the_policy(self.puller)
        self.puller.containerd.mirror(f"http://{self.puller.ip}:5000", server=self.upstream.url)
        self.pulled = self.failed = 0
        self._flags: dict[str, dict[str, Flag]] = {node.name: {"layout_path": self.app.layout} for node in self.holders}
        self._env: dict[str, dict[str, str]] = {}

    @property
    def path(self) -> str:
        """The image's tag, as a runtime asks a mirror for it."""
        return f"/v2/{self.app.repository}/manifests/{self.app.tag}?ns={self.app.registry}"

    def start(self, node: Node, mode: str, *, env: dict[str, str] | None = None, **flags: Flag) -> None:
        """Start the sidecar of ``node``; ``env`` and ``flags`` hold for its later starts too."""
        kept = self._env.setdefault(node.name, {"CONSUL_HTTP_TOKEN": self.token}) | (env or {})
        more = self._flags.setdefault(node.name, {}) | flags
        self._env[node.name], self._flags[node.name] = kept, more
        node.start_sidecar(wait=False, env=kept, peer_tls=mode, **more)

    def start_all(self, mode: str, **flags: Flag) -> None:
        for node in self.lab:
            self.start(node, mode, **flags)
        self.await_all()

    def await_all(self) -> None:
        for node in self.lab:
            self.await_ring(node)
        self.await_image()

    def await_ring(self, node: Node, others: int = 2) -> None:
        """Wait until the sidecar of ``node`` is ready, and has so many peers."""
        node.sidecar.await_ready()
        node.sidecar.process.until(lambda: members(node) == others, timeout=30, what=f"{node} knows all members")

    def await_image(self) -> None:
        until(lambda: self.puller.request(self.path).status == 200, timeout=20, what="the image is found")

    def restart(self, node: Node, mode: str, *, others: int = 2) -> None:
        assert node.sidecar.stop() == 0
        self.start(node, mode)
        self.await_ring(node, others)

    def leave(self, *nodes: Node) -> None:
        """The sidecars of ``nodes`` stop."""
        for node in nodes:
            assert node.sidecar.stop() == 0

    def trust_domain(self) -> str:
        return str(self.puller.consul.get("/v1/agent/connect/ca/roots")["TrustDomain"])

    def rotate(self, **config: Any) -> ConnectAuthority:
        """As an operator with a root of his own."""
        authority = ConnectAuthority(self.trust_domain())
        key, certificate = authority.exported()
        given = {"LeafCertTTL": "72h", "PrivateKey": key, "RootCert": certificate, **config}
        forced = {"ForceWithoutCrossSigning": True} if config else {}
        document = {"Provider": "consul", "Config": given, **forced}
        self.puller.consul.put("/v1/connect/ca/configuration", document)
        return authority

    def await_authorities(self, number: int, *nodes: Node) -> None:
        for node in nodes or self.lab.nodes:
            until(
                lambda node=node: certificates(node)[-1][1] == number, timeout=30, what=f"{node} knows {number} roots"
            )

    @contextmanager
    def renewed(self, *nodes: Node) -> Iterator[None]:
        """Afterwards each of ``nodes`` has another certificate."""
        before = {node: certificates(node)[-1][0] for node in nodes}
        yield
        for node, old in before.items():
            until(lambda node=node, old=old: certificates(node)[-1][0] != old, timeout=90, what=f"{node} is renewed")

    @contextmanager
    def pulls(self) -> Iterator[Pulls]:
        """Pulls all the time, none of which may fail."""
        pulls = Pulls(self)
        pulls.thread.start()
        try:
            yield pulls
        finally:
            pulls.over.set()
            pulls.thread.join(90)
            self.pulled += pulls.done
            self.failed += len(pulls.failed)
        assert not pulls.failed, pulls.failed
        for node in self.lab:
            assert "Traceback" not in node.sidecar.log()


Scene = Callable[[Mirrors], None]
_TITLE = "pulls while encryption between nodes changes"
_HEADER = ["scene", "containerd", "lasted", "pulls", "failed", "blobs from upstream"]


def play(
    scene: Scene, version: str, cluster: MakeCluster, image: MakeImage, record_property: Callable[[str, object], None]
) -> None:
    """Do what the scene does to new nodes, and tell what pulls noticed of it."""
    mirrors = Mirrors(cluster, image, version)
    began = time.monotonic()
    try:
        scene(mirrors)
    finally:
        name = scene.__name__.strip("_").replace("_", " ")
        cells = [f"{version[0]}.{version[1]}", f"{time.monotonic() - began:.0f} s", str(mirrors.pulled)]
        cells += [str(mirrors.failed), str(len(mirrors.upstream.blob_requests()))]
        record_property("table", (_TITLE, _HEADER, [name, *cells]))


class Pulls:
    """One pull after the other, until ``over``."""

    def __init__(self, mirrors: Mirrors) -> None:
        self._node, self._app, self._upstream = mirrors.puller, mirrors.app, mirrors.upstream
        self.done, self.failed = 0, list[str]()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self.over.is_set():
            try:
                self._node.containerd.pull_cri(self._app.name, timeout=_PULL_TIMEOUT)
                self.done += 1
            except PullError as exc:
                self.failed.append(str(exc)[:300])
                self.over.wait(0.5)
            with suppress(Exception):
                self._node.containerd.remove_image(self._app.name)

    def some(self, what: str, count: int = 2) -> int:
        """Wait until so many pulls have been done from now on; how many blobs came from the upstream meanwhile."""
        done, before = self.done, len(self._upstream.blob_requests())
        until(lambda: self.done >= done + count or self.failed, timeout=60, what=f"pulls: {what}")
        assert not self.failed, (what, self.failed)
        return len(self._upstream.blob_requests()) - before

    def from_peers(self, what: str, count: int = 2) -> None:
        """The one pull that goes on already may still come from anywhere."""
        self.some(what, 1)
        assert self.some(what, count) == 0, what

    def from_upstream(self, what: str) -> None:
        """At least one whole pull has to come from the upstream."""
        self.some(what, 1)
        assert self.some(what, 2) >= len(self._app.amd64.layers), what


def token_of_the_policy(admin: Node) -> str:
    """A token with the rights that consul/policies gives to a sidecar."""
    admin.consul.cli("acl", "policy", "create", "-name", "spegel", "-rules", f"@{POLICY}")
    made = json.loads(admin.consul.cli("acl", "token", "create", "-policy-name", "spegel", "-format=json"))
    return str(made["SecretID"])


def certificates(node: Node) -> list[tuple[str, int]]:
    """Serial numbers of the certificates so far, with the number of authorities."""
    return [(event["serial"], event["authorities"]) for event in log_events(node) if event["event"] == "certificate"]


def encrypted(node: Node) -> dict[str, bool | None]:
    """Whether the last connection to each peer was encrypted; None if there was none yet."""
    peers = json.loads(node.request("/api/peers", port=METRICS_PORT).body)
    return {peer["node"]: peer["encrypted"] for peer in peers if peer["state"] == "alive"}


def warnings(node: Node) -> list[str]:
    """Those of ``/readyz``, which is 200 nevertheless."""
    answer = node.request("/readyz?format=json", port=METRICS_PORT)
    assert answer.status == 200
    return list(json.loads(answer.body)["warnings"])


def await_warning(node: Node, text: str, timeout: float = 30) -> None:
    until(lambda: any(text in each for each in warnings(node)), timeout=timeout, what=f"{node} warns: {text}")


def expires_in(node: Node) -> float:
    """Hours until the certificate ends, as the metric says."""
    return metric(node, "spegel_certificate_expiry_seconds") / 3600
