# A deploy, as Nomad makes one: node after node is stopped, started, and left alone until it is well.  Meanwhile
# everybody pulls.  Two of three nodes that have the image are always there, so there is no excuse for a miss.

"""A rolling restart under load."""

from __future__ import annotations

import hashlib
import http.client
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from lab.cluster import Node
from lab.image import MIB, Image

pytestmark = pytest.mark.real

KILL_TIMEOUT = 20.0
HOLDERS = 3


class Puller:
    """Pulls the image again and again as a node's runtime does, from the node's own mirror."""

    def __init__(self, node: Node, image: Image) -> None:
        self._node = node
        self._image = image
        self.restarting = False
        self.pulls = 0
        self.refused = 0
        self.longest = 0.0
        self.failures: list[str] = []

    def pull_until(self, stop: threading.Event) -> None:
        while not stop.is_set():
            if self.restarting:
                time.sleep(0.02)
            elif self._pull():
                self.pulls += 1
                time.sleep(0.2)  # a load, and not all that the machine can do

    def _pull(self) -> bool:
        app = self._image
        wanted = [(f"manifests/{app.tag}", app.index), (f"manifests/{app.amd64.manifest}", app.amd64.manifest)]
        wanted += [(f"blobs/{digest}", digest) for digest in (app.amd64.config, *app.amd64.layers)]
        for path, digest in wanted:
            before = time.monotonic()
            try:
                answer = self._node.request(f"/v2/{app.repository}/{path}?ns={app.registry}", timeout=10)
                problem = "" if answer.status == 200 else f"{answer.status} {answer.body[:120]!r}"
                if not problem and "sha256:" + hashlib.sha256(answer.body).hexdigest() != digest:
                    problem = "wrong bytes"
            except (ConnectionRefusedError, ConnectionResetError) as why:
                # the runtime goes on to the next host at once
                if self.restarting:
                    self.refused += 1
                    return False
                problem = repr(why)
            except (OSError, http.client.HTTPException) as why:
                problem = repr(why)
            self.longest = max(self.longest, time.monotonic() - before)
            if problem:
                self.failures.append(f"{self._node.name} {path[:30]}: {problem}")
                return False
        return True


def members(node: Node) -> int:
    for line in node.sidecar.metrics().splitlines():
        if line.startswith("spegel_ring_members "):
            return int(float(line.split()[-1]))
    return 0


def test_no_pull_fails_while_six_nodes_are_restarted_one_by_one(cluster, image) -> None:
    lab = cluster(6, containerd=[*["21"] * HOLDERS, None, None, None])
    app = image(layers=[2 * MIB, 1000])
    empty = lab.dir / "empty"
    for node in lab.nodes[:HOLDERS]:
        node.containerd.import_image(app.tar)
    (empty / "blobs/sha256").mkdir(parents=True)
    (empty / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (empty / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')

    def start(node: Node) -> None:
        asker = {} if node.index < HOLDERS else {"layout_path": empty}
        # a busy machine may need more than the usual 200 ms for a lookup, which says nothing of restarts
        node.start_sidecar(wait=False, log_level="info", mirror_resolve_timeout="1s", **asker)

    def settled(node: Node) -> None:
        node.sidecar.await_ready(60)
        node.sidecar.process.until(lambda: members(node) == 5, timeout=60, what=f"{node} knows everybody")

    for node in lab:
        start(node)
    for node in lab:
        settled(node)
    pullers = [Puller(node, app) for node in lab.nodes[HOLDERS:]]
    with ThreadPoolExecutor(len(pullers)) as pool:
        stop = threading.Event()
        try:
            running = [pool.submit(puller.pull_until, stop) for puller in pullers]
            time.sleep(1)
            for node in lab:
                mine = [puller for puller in pullers if puller._node is node]
                for puller in mine:
                    puller.restarting = True
                # 0 is its own status: one that takes longer is killed
                assert node.sidecar.stop(KILL_TIMEOUT) == 0, node.sidecar.log()[-2000:]
                start(node)
                settled(node)
                for puller in mine:
                    puller.restarting = False
            time.sleep(0.5)
        finally:
            stop.set()
        for each in running:
            each.result(30)
    assert [puller.failures for puller in pullers] == [[]] * len(pullers)
    assert all(puller.pulls > 10 for puller in pullers)
    print({puller._node.name: (puller.pulls, round(puller.longest, 2), puller.refused) for puller in pullers})
    for node in lab:
        assert "Traceback" not in node.sidecar.log()
