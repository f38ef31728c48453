"""``configuration``, ``cleanup`` and ``cleanup-wait``: what a user types and reads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab.answering import Docker
from lab.ports import free_port
from lab.process import HANG, ending
from runtimes.certs_d import tree

from spegel_consul import cli
from spegel_consul.runtimes.clients import installed_clients
from spegel_consul.runtimes.clients.registries_conf import NAME

TARGET = "http://10.0.0.7:5000"


@dataclass(frozen=True, slots=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Node:
    """Directories of a machine, and the command line that is told of them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.root = root
        self.certs = root / "containerd/certs.d"
        self.docker_certs = root / "docker/certs.d"
        self.daemon = root / "docker/daemon.json"
        self.sock = root / "docker.sock"
        self.containers = root / "containers"
        self.buildkitd = root / "buildkit/buildkitd.toml"
        # what else is on this machine is not this node's
        monkeypatch.setattr(installed_clients, "TRACES", {name: (root / name,) for name in installed_clients.TRACES})

    @property
    def directories(self) -> list[str]:
        return [
            f"--containerd-registry-config-path={self.certs}",
            f"--docker-certs-path={self.docker_certs}",
            f"--docker-daemon-config={self.daemon}",
            f"--containers-config-path={self.containers}",
            f"--buildkitd-config={self.buildkitd}",
        ]

    def run(self, *words: str) -> Done:
        """The console script, in this process."""
        argv = ["spegel-consul", *words, *self.directories]
        if words[0] == "configuration":
            argv.append(f"--docker-sock={self.sock}")
        self._monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = self._capsys.readouterr()
        return Done(int(exit_.value.code or 0), out, err)

    def configure(self, *words: str) -> Done:
        return self.run("configuration", f"--mirror-targets={TARGET}", *words)

    def files(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if not path.is_dir()}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Node:
    return Node(tmp_path, monkeypatch, capsys)


def test_all_runtimes_there_and_back(node: Node) -> None:
    node.daemon.parent.mkdir()
    node.daemon.write_text('{"debug": true}\n')
    runtimes = [f"--runtime={name}" for name in ("containerd", "docker", "docker-daemon")]
    shown = node.configure(*runtimes, "--mirrored-registries=docker.io,_default,_default", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert f'+[host."{TARGET}"]' in shown.stdout
    assert '-{"debug": true}' in shown.stdout
    assert node.files() == {"docker/daemon.json"}
    done = node.configure(*runtimes, "--mirrored-registries=docker.io,_default,_default")
    assert done.returncode == 0, done.stderr
    assert "restart Docker" in done.stderr
    for base in ("containerd", "docker"):
        for name in ("docker.io", "_default"):
            assert f"{base}/certs.d/{name}/hosts.toml" in node.files()
    assert json.loads(node.daemon.read_text())["registry-mirrors"] == [TARGET]
    again = node.configure(*runtimes, "--mirrored-registries=docker.io,_default")
    assert (again.returncode, again.stdout) == (0, "nothing to change\n")
    undone = node.run("cleanup")
    assert undone.returncode == 0, undone.stderr
    assert node.files() == {"docker/daemon.json"}
    assert node.daemon.read_text() == '{"debug": true}\n'
    assert node.run("cleanup").stdout == "nothing to restore\n"


def test_a_dry_run_shows_the_files_that_are_restored_or_removed(node: Node) -> None:
    (node.certs / "ghcr.io").mkdir(parents=True)
    (node.certs / "ghcr.io/hosts.toml").write_text('[host."http://cache"]\n')
    words = ["--runtime=containerd", "--mirrored-registries=quay.io"]
    assert node.configure(*words, "--mirrored-registries=ghcr.io,docker.io").returncode == 0
    configured = tree(node.root)
    shown = node.configure(*words, "--dry-run").stdout.splitlines()
    ghcr, docker_io = (f"{node.certs}/{name}/hosts.toml" for name in ("ghcr.io", "docker.io"))
    assert [line for line in shown if line.startswith(("---", "+++"))] == [
        f"--- {docker_io}",
        "+++ /dev/null",
        f"--- {ghcr}",
        f"+++ {ghcr}",
    ]
    assert f'-[host."{TARGET}"]' in shown
    assert tree(node.root) == configured
    assert f"restored {ghcr}" in node.configure(*words).stdout
    assert node.configure(*words, "--dry-run").stdout == "nothing to change\n"


@pytest.mark.parametrize("there", [True, False])
def test_files_of_several_runtimes_in_one_directory(node: Node, there: bool) -> None:
    base = node.docker_certs = node.daemon.parent
    node.buildkitd = base / "buildkitd.toml"
    if there:
        base.mkdir()
        node.daemon.write_text('{"debug": true}\n')
        node.buildkitd.write_text("debug = true\n")
    before = tree(node.root)
    words = [f"--runtime={name}" for name in ("docker", "docker-daemon", "buildkit")]
    done = node.configure(*words, "--mirrored-registries=ghcr.io")
    assert done.stdout.count("wrote") == 3, done.stderr
    configured = tree(node.root)
    assert node.configure(*words, "--mirrored-registries=ghcr.io").stdout == "nothing to change\n"
    for word in words:
        assert node.configure(word, "--mirrored-registries=ghcr.io").stdout == "nothing to change\n"
    assert tree(node.root) == configured
    own, node.buildkitd = node.buildkitd, base / "second.toml"
    assert node.configure("--runtime=buildkit", "--mirrored-registries=ghcr.io").stdout == f"wrote {node.buildkitd}\n"
    undone = node.run("cleanup")
    assert undone.returncode == 0, undone.stderr
    assert node.files() == {f"docker/{name}" for name in ("buildkitd.toml", "_backup/spegel-consul.json")}.union(
        {"docker/daemon.json", "docker/_backup/buildkitd.toml"} if there else ()
    )
    node.buildkitd = own
    assert node.run("cleanup").returncode == 0
    assert tree(node.root) == before


def test_podman_crio_and_buildkit_there_and_back(node: Node) -> None:
    node.buildkitd.parent.mkdir()
    node.buildkitd.write_text("debug = true\n")
    words = ["--runtime=podman", "--runtime=crio", "--runtime=buildkit", "--mirrored-registries=ghcr.io"]
    shown = node.configure(*words, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert '+location = "10.0.0.7:5000/ghcr.io"' in shown.stdout
    assert '+  mirrors = ["10.0.0.7:5000"]' in shown.stdout
    assert node.files() == {"buildkit/buildkitd.toml"}
    done = node.configure(*words)
    assert done.returncode == 0, done.stderr
    assert "systemctl reload crio" in done.stderr
    assert "systemctl restart buildkit" in done.stderr
    assert f"containers/registries.conf.d/{NAME}" in node.files()
    assert (node.configure(*words).stdout, node.configure(*words).stderr) == ("nothing to change\n", "")
    undone = node.run("cleanup")
    assert undone.returncode == 0, undone.stderr
    assert node.files() == {"buildkit/buildkitd.toml"}
    assert node.buildkitd.read_text() == "debug = true\n"
    assert not node.containers.exists()


def test_a_proxys_password_in_a_file_of_buildkit_is_not_shown(node: Node) -> None:
    node.buildkitd.parent.mkdir()
    node.buildkitd.write_text('[worker.oci.labels]\n  proxy = "http://me:s3cret@proxy:3128"\n')
    shown = node.configure("--runtime=buildkit", "--mirrored-registries=ghcr.io", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert 'proxy = "http://…@proxy:3128"' in shown.stdout
    assert "s3cret" not in shown.stdout + shown.stderr
    node.buildkitd.write_text('proxy = "http://me:s3cret@proxy:3128"\n[registry\n')
    refused = node.configure("--runtime=buildkit", "--mirrored-registries=ghcr.io")
    assert refused.returncode == 1
    assert "s3cret" not in refused.stdout + refused.stderr


def test_auto_finds_podman_crio_and_buildkit_by_their_traces(node: Node) -> None:
    (node.root / "podman").mkdir()
    assert node.configure("--mirrored-registries=ghcr.io").stderr == ""
    assert {name for name in node.files() if "_backup" not in name} == {f"containers/registries.conf.d/{NAME}"}
    for name in ("crio", "buildkit"):
        (node.root / name).mkdir()
    assert node.configure("--mirrored-registries=quay.io").stderr.count("note: re") == 2
    assert "buildkit/buildkitd.toml" in node.files()


def test_spegels_flags_and_variables(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    (node.certs / "ghcr.io").mkdir(parents=True)
    (node.certs / "ghcr.io/hosts.toml").write_text('[host."http://cache"]\n')
    (node.root / "secret").mkdir()
    (node.root / "secret/username").write_text("u")
    (node.root / "secret/password").write_text("p\n")
    env = {
        "CONTAINERD_REGISTRY_CONFIG_PATH": str(node.certs),
        "MIRRORED_REGISTRIES": "https://ghcr.io",
        "MIRROR_TARGETS": f"{TARGET} http://spegel.service.consul:5000",
        "RESOLVE_TAGS": "false",
        "PREPEND_EXISTING": "true",
        "REGISTRY_ADDR": "10.0.0.7:5000",
        "RUNTIME": "containerd",
        "BASIC_AUTH_FILE": str(node.root / "secret"),
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    done = node.run("configuration")
    assert done.returncode == 0, done.stderr
    text = (node.certs / "ghcr.io/hosts.toml").read_text()
    assert text.index(TARGET) < text.index("spegel.service.consul") < text.index("http://cache")
    assert '"resolve"' not in text
    assert 'Authorization = "Basic dTpw"' in text


@pytest.mark.parametrize(
    ("words", "target"),
    [
        ([], "http://127.0.0.1:5000"),
        (["--registry-addr=:5050"], "http://127.0.0.1:5050"),
        (["--registry-addr=10.0.0.8:5000"], "http://10.0.0.8:5000"),
        ([f"--mirror-targets={TARGET}"], TARGET),
    ],
)
def test_the_mirror_of_this_node_is_at_loopback(node: Node, words: list[str], target: str) -> None:
    """Go asks an HTTP proxy for all other addresses, also for the node's own."""
    done = node.run("configuration", "--runtime=containerd", "--runtime=docker-daemon", *words)
    assert done.returncode == 0, done.stderr
    assert f'[host."{target}"]' in (node.certs / "_default/hosts.toml").read_text()
    assert json.loads(node.daemon.read_text())["registry-mirrors"] == [target]


def test_a_mirror_for_all_registries_stays(node: Node) -> None:
    """The site has no way out but its own mirror, so a node that has the image nowhere must still ask that one."""
    path = node.certs / "_default/hosts.toml"
    path.parent.mkdir(parents=True)
    site = 'server = "http://me:s3cret@site"\n\n[host."http://me:s3cret@site"]\n  capabilities = ["pull"]\n'
    path.write_text(site)
    done = node.configure("--runtime=containerd")
    assert (done.returncode, done.stderr) == (0, "")
    assert path.read_text().index(TARGET) < path.read_text().index('[host."http://me:s3cret@site"]')
    for words in (["--replace-existing"], ["--prepend-existing=false"]):
        done = node.configure("--runtime=containerd", *words)
        assert done.returncode == 0
        assert '[host."http://me:s3cret@site"]' not in path.read_text()
        assert f"note: {path} no longer names http://…@site: cleanup brings it back" in done.stderr
    assert node.run("cleanup").returncode == 0
    assert path.read_text() == site


@pytest.mark.parametrize(
    ("words", "expected", "status"),
    [
        (["--mirror-targets=10.0.0.7:5000"], "must look like http://10.0.0.7:5000", 2),
        (["--mirrored-registries=ghcr.io/team"], "'ghcr.io/team' must look like", 2),
        (["--runtime=rkt"], "'--runtime'", 2),
        (["--basic-auth-file=/nowhere"], "--basic-auth-file /nowhere can't be read", 2),
        (["--prepend-existing", "--replace-existing"], "exclude each other", 2),
        (["--runtime=auto"], "no runtime was found on this machine", 1),
    ],
)
def test_a_wrong_value_is_one_line(node: Node, words: list[str], expected: str, status: int) -> None:
    done = node.configure(*words)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert expected in done.stderr
    assert node.files() == set()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "docker/daemon.json",
            '{"debug": true, // no\n}',
            "left alone, and so was all else: it is not JSON",
        ),
        ("docker/daemon.json", '{"debug": true,}', "left alone, and so was all else: it is not JSON"),
        ("containerd/certs.d/ghcr.io/hosts.toml", "server = ", "hosts.toml was left alone, and so was all else: it is"),
        ("containers/registries.conf", "[registries.search]\nregistries = []", "nothing was changed: "),
        ("containers/registries.conf.d/a.conf", "[[registry]", "a.conf can't be used: it is not TOML"),
        ("buildkit/buildkitd.toml", "[registry", "buildkitd.toml was left alone, and so was all else: it is not TOML"),
    ],
)
def test_a_file_that_cant_be_read_stops_the_whole(node: Node, name: str, content: str, expected: str) -> None:
    (node.root / name).parent.mkdir(parents=True)
    (node.root / name).write_text(content)
    runtimes = [f"--runtime={name}" for name in ("containerd", "docker", "docker-daemon", "podman", "buildkit")]
    done = node.configure(*runtimes, "--mirrored-registries=docker.io,ghcr.io", "--prepend-existing")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert expected in done.stderr
    assert node.files() == {name}
    assert (node.root / name).read_text() == content


@pytest.mark.parametrize(
    ("version", "image_store", "files"),
    [
        ("28.5.2", True, {"docker/certs.d/_default/hosts.toml"}),
        ("28.5.2", False, {"docker/certs.d/_default/hosts.toml", "docker/daemon.json"}),
        ("26.1.5", True, {"docker/daemon.json"}),
        ("27.0.1", False, {"docker/daemon.json"}),
    ],
)
def test_auto_writes_what_this_docker_reads(node: Node, version: str, image_store: bool, files: set[str]) -> None:
    with Docker(node.sock, version, image_store) as docker:
        done = node.configure()
        docker.shutdown()
    assert done.returncode == 0, done.stderr
    written = {name for name in node.files() if "_backup" not in name} - {"docker.sock"}
    assert written == files


@pytest.mark.parametrize("config", ["docker/daemon.json", "other.json"])
def test_a_mirror_that_dockerd_has_from_a_flag(node: Node, config: str) -> None:
    """With the mirror in its file too, dockerd would not start again. systemd listens on the socket in its place."""
    program = node.root / "dockerd"
    program.symlink_to(Path(sys.executable).resolve())
    words = ["-c", "import time; time.sleep(600)", f"--config-file={node.root / config}", "--registry-mirror=http://x"]
    node.daemon.parent.mkdir()
    node.daemon.write_text("{}")
    with Docker(node.sock, "26.1.5", True) as docker, ending(subprocess.Popen([program, *words])) as dockerd:
        node.sock.with_suffix(".pid").write_text(str(dockerd.pid))
        runs = [node.configure(*words) for words in ([], ["--runtime=docker-daemon"])]
        docker.shutdown()
    is_same = config == "docker/daemon.json"
    assert [run.returncode for run in runs] == ([1, 1] if is_same else [0, 0])
    if is_same:
        assert (
            "daemon.json was left alone, and so was all else: dockerd has the flag --registry-mirror" in runs[1].stderr
        )
        assert node.daemon.read_text() == "{}"


def test_a_docker_behind_a_proxy_is_noted(node: Node) -> None:
    with Docker(node.sock, "28.5.2", True, HttpProxy="http://me:s3cret@proxy:3128", NoProxy="localhost") as docker:
        done = node.configure("--dry-run")
        own = node.run("configuration", "--dry-run")
        docker.shutdown()
    assert f"note: docker has an HTTP proxy and no exception for {TARGET}" in done.stderr
    assert "s3cret" not in done.stderr + done.stdout
    assert (own.returncode, own.stderr) == (0, "")


def test_cleanup_wait(node: Node) -> None:
    port = free_port()
    waiting = [sys.executable, "-m", "spegel_consul", "cleanup-wait", f"--probe-endpoint=127.0.0.1:{port}"]
    waiting += ["--period=50ms"]
    late = subprocess.run([*waiting, "--timeout=200ms"], capture_output=True, text=True, timeout=HANG, check=False)
    assert late.returncode == 1
    assert "not cleaned up on all nodes after 0.2 s: 127.0.0.1 did not answer" in late.stderr
    cleaning = [sys.executable, "-m", "spegel_consul", "cleanup", f"--addr=:{port}", *node.directories]
    with (
        ending(subprocess.Popen([*waiting, f"--timeout={HANG:g}s"])) as wait,
        ending(subprocess.Popen(cleaning)) as cleanup,
    ):
        assert wait.wait(2 * HANG) == 0
        cleanup.send_signal(signal.SIGTERM)
        assert cleanup.wait(HANG) == 0


@pytest.mark.parametrize(
    ("version", "asks"), [("28.5.2", False), ("29.0.4", False), ("29.1.0", True), ("30.0.0", True)]
)
def test_a_docker_that_knows_the_capability_asks_for_signatures(node: Node, version: str, asks: bool) -> None:
    with Docker(node.sock, version, True) as docker:
        done = node.configure()
        docker.shutdown()
    assert done.returncode == 0, done.stderr
    for runtime in ((), ("--runtime=docker",)):  # the second time Docker does not answer
        document = tomllib.loads((node.docker_certs / "_default/hosts.toml").read_text())
        assert ("referrers" in document["host"][TARGET]["capabilities"]) is asks
        assert node.configure("--runtime=docker", *runtime).returncode == 0


def test_only_docker_asks_for_signatures(node: Node) -> None:
    words = ["configuration", "--runtime=docker", "--runtime=containerd", f"--mirror-targets={TARGET}"]
    for flags, docker in (([], ["pull", "resolve"]), (["--docker-referrers=true"], ["pull", "resolve", "referrers"])):
        assert node.run(*words, *flags).returncode == 0
        for directory, expected in ((node.docker_certs, docker), (node.certs, ["pull", "resolve"])):
            document = tomllib.loads((directory / "_default/hosts.toml").read_text())
            assert document["host"][TARGET]["capabilities"] == expected
