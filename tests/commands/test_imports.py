# Each import costs CPU at every start and memory for a life, and one line in a far module is enough to add a framework.
# So the libraries of each command are bounded: by their names, because times depend on the machine.

"""The libraries that a command imports."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from lab.ports import free_port
from lab.process import HANG, ending, until

from spegel_consul.cli import COMMANDS

PROGRAM = """
import atexit, json, sys
from pathlib import Path

def report():
    known = {*sys.stdlib_module_names, "spegel_consul"}
    roots = {name.partition(".")[0] for name in sys.modules} - known | {"asyncio"} & set(sys.modules)
    Path(sys.argv[0]).write_text(json.dumps(sorted(roots)))

sys.argv.pop(0)
atexit.register(report)
from spegel_consul.cli import main
main()
"""
OF_THE_INTERPRETER = {"_distutils_hack", "_virtualenv", "sitecustomize", "__mp_main__", "_pytest", "__main__"}
TRIO = {"trio", "attr", "attrs", "idna", "outcome", "sniffio", "sortedcontainers"}
OPTIONS = {*TRIO, "h11", "httpcore", "httpx", "certifi", "structlog", "consul", "six"}
"""The types of options are those of the settings, whose modules import the clients that they configure."""
ASKS = {"click", "h11"}
SIDECAR = {
    *OPTIONS,
    "ifaddr",
    "click",
    *("hypercorn", "h2", "prometheus_client", "cryptography", "_cffi_backend", "_openssl"),
    *("libp2p", "noise", "nacl", "_sodium", "google", "multiaddr", "multibase", "multihash", "varint", "blake3"),
    *("base58", "baseconv", "mmh3", "morphys"),
}
HELP = {
    "cleanup": {*OPTIONS, "click", "tomlkit"},
    "cleanup-wait": {*OPTIONS, "click", "tomlkit"},
    "completion": {"click"},
    "configuration": {*OPTIONS, "click", "tomlkit"},
    "dev": {*TRIO, "click"},
    "events": ASKS,
    "images": ASKS,
    "leader": {*OPTIONS, "click"},
    "lookup": ASKS,
    "peers": ASKS,
    "preflight": {*OPTIONS, "click", "hypercorn", "h2"},
    "preheat": {*OPTIONS, "click"},
    "pull": ASKS,
    "registry": {
        *OPTIONS,
        "click",
        "prometheus_client",
        "cryptography",
        "_cffi_backend",
        "_openssl",
        "hypercorn",
        "h2",
    },
    "status": ASKS,
    "top": ASKS,
    "version": {"click"},
}


def imported(out: Path, *words: str) -> set[str]:
    """The libraries in the process of a command when it ends."""
    subprocess.run([*program(out), *words], capture_output=True, timeout=HANG, check=False)
    return roots(out)


def program(out: Path) -> list[str | Path]:
    return [sys.executable, "-c", PROGRAM, out]


def roots(out: Path) -> set[str]:
    return set(json.loads(out.read_text())) - OF_THE_INTERPRETER


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command(name: str, tmp_path: Path) -> None:
    assert imported(tmp_path / "roots", name, "--help") - HELP[name] == set()


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["version"], ["nonsense"]], ids=" ".join)
def test_the_group_needs_click_alone(words: list[str], tmp_path: Path) -> None:
    assert imported(tmp_path / "roots", *words) == {"click"}


@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["peers"], ["events"]], ids=" ".join)
def test_a_question_to_a_sidecar_needs_no_event_loop(words: list[str], tmp_path: Path) -> None:
    assert imported(tmp_path / "roots", *words, "--node=127.0.0.1:1") == {"click", "h11"}


def test_a_question_to_consul(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "127.0.0.1:1")
    assert imported(tmp_path / "roots", "leader") - {*OPTIONS, "click"} == set()


def test_a_sidecar_that_monitoring_and_runtimes_ask(tmp_path: Path) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    argv = [*program(tmp_path / "roots"), "registry", "--registry-addr=127.0.0.1:0", "--router-addr=127.0.0.1:0"]
    argv += [f"--metrics-addr={metrics}", f"--data-dir={tmp_path}/data", f"--layout-path={tmp_path}/layout"]
    argv += ["--bootstrap-kind=static", "--static-bootstrap-peers=127.0.0.1:1", "--consul-service=off"]
    argv += ["--skip-preflight", "--hang-timeout=0"]
    (tmp_path / "layout/blobs/sha256").mkdir(parents=True)
    (tmp_path / "layout/oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (tmp_path / "layout/index.json").write_text('{"schemaVersion": 2, "manifests": []}')

    def ask(path: str) -> bytes:
        with suppress(OSError), urllib.request.urlopen(f"http://{metrics}{path}", timeout=HANG) as answer:
            found: bytes = answer.read()
            return found
        return b""

    with (tmp_path / "log").open("wb") as log, ending(subprocess.Popen(argv, stdout=log, stderr=log)) as process:
        until(lambda: ask("/readyz") == b"ok\n", timeout=HANG, what="the sidecar is ready")
        for path in ("/livez", "/id", "/metrics"):
            assert ask(path), path
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG) == 0
    assert roots(tmp_path / "roots") - SIDECAR == set()
    assert roots(tmp_path / "roots") >= {"trio", "hypercorn", "libp2p", "structlog"}
