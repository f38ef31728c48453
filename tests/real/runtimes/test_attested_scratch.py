from __future__ import annotations
import hashlib, json, tarfile
import pytest
from lab.image import MIB, INDEX, MANIFEST, CONFIG, _Layout, _json
from lab.containerd import PullError
from lab.process import until

pytestmark = pytest.mark.real

def attest(image):
    layout = object.__new__(_Layout); layout.path = image.layout
    index = json.loads(image.blob(image.digest if hasattr(image,'digest') else image.index).read_bytes())
    layer = layout.put("application/vnd.in-toto+json", b'{"_type":"https://in-toto.io/Statement/v0.1"}')
    layer["annotations"] = {"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"}
    config = layout.put(CONFIG, _json({"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":[layer["digest"]]}}))
    manifest = layout.put(MANIFEST, _json({"schemaVersion":2,"mediaType":MANIFEST,"config":config,"layers":[layer]}))
    manifest["platform"] = {"architecture":"unknown","os":"unknown"}
    manifest["annotations"] = {"vnd.docker.reference.type":"attestation-manifest","vnd.docker.reference.digest":index["manifests"][0]["digest"]}
    index["manifests"].append(manifest)
    new = layout.put(INDEX, _json(index))
    new["annotations"] = {"org.opencontainers.image.ref.name": image.tag, "io.containerd.image.name": image.name}
    (image.layout/"index.json").write_bytes(_json({"schemaVersion":2,"manifests":[new]}))
    tar = image.tar.with_name("attested.tar")
    with tarfile.open(tar,"w") as out:
        for file in sorted(p for p in image.layout.glob("**/*") if p.is_file()):
            out.add(file, str(file.relative_to(image.layout)))
    return tar, new["digest"], manifest["digest"]

@pytest.mark.parametrize("caps", [["pull","resolve"],["pull","resolve","referrers"]])
def test_attested(cluster, image, caps):
    app = image("ghcr.io/team/tool:v2", layers=[2*MIB])
    tar, index, att = attest(app)
    lab = cluster(2, consul=False, containerd=["21", None])
    lab[0].containerd.import_image(tar, all_platforms=True)
    peers = f"{lab[0].ip}:5001,{lab[1].ip}:5001"
    lab[0].start_sidecar(static_bootstrap_peers=peers)
    node = lab[1]
    node.add_docker("28", insecure=()).await_ready()
    node.start_sidecar(static_bootstrap_peers=peers)
    path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"
    until(lambda: node.request(path).status == 200, timeout=20, what="found")
    print(node.docker.docker("version", "--format", "{{.Server.Version}}"))
    node.docker.write_hosts("_default", f'[host."http://127.0.0.1:5000"]\n  capabilities = {json.dumps(caps)}\n')
    try:
        node.docker.pull(app.name)
        print("PULLED", caps)
    except PullError as exc:
        print("FAILED", caps, str(exc)[:1500])
    print(att in node.docker.content(), index in node.docker.content())
    for line in node.sidecar.log().splitlines():
        if "referrers" in line or "sha256-" in line: print(line[:300])
