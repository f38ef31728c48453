"""Real Consul, containerd, Docker and a registry on a network of our own, for the tests in ``tests/real``.

A test asks for what it needs and all of it goes away with the test::

    def test_the_second_node_pulls_from_the_first(cluster, image):
        lab = cluster(3)                                # n0, n1, n2, each with Consul and containerd 2.1
        app = image("docker.io/library/app:v1", layers=[8 * MIB])
        upstream = lab.start_registry(on=0)
        upstream.push(app)
        for node in lab:
            node.start_sidecar()
            node.containerd.mirror("http://127.0.0.1:5000", server=upstream.url)
        lab[1].containerd.pull_cri(app.name)
        upstream.forget()
        until(lambda: lab[2].request(f"/v2/library/app/blobs/{app.amd64.layers[1]}?ns=docker.io").status == 200, …)
        lab[2].containerd.pull_cri(app.name, timeout=20)
        assert not [request for request in upstream.requests() if "/blobs/" in request]

Nothing here is asynchronous: what is tested are other processes, and ``until`` waits for them with a deadline.
"""
