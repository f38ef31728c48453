"""A disk that does not answer any more keeps nobody waiting for good, a stop least of all."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trio
import trio.testing

import spegel_consul
from spegel_consul.disk import threads
from spegel_consul.disk.threads import in_thread, open_in_thread
from spegel_consul.oci.media import OCI_MANIFEST

PRODUCT = Path(spegel_consul.__file__).parent
COMPUTES = {"web/cluster/cluster_page.py", "web/pages.py", "web/queries/trial_pull.py", "zerocopy/encrypted/pump.py"}
"""Threads in which nothing waits for a device."""


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def sources() -> list[Path]:
    found = sorted(PRODUCT.rglob("*.py"))
    assert len(found) >= 150
    return found


def test_each_shield_has_a_limit() -> None:
    shields = 0
    for path in sources():
        assert not [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and node.attr == "shield" and isinstance(node.ctx, ast.Store)
        ], f"{path}: a shield that is put up later"
        for call in calls(path):
            if any(keyword.arg == "shield" for keyword in call.keywords):
                shields += 1
                name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
                limited = name in ("move_on_after", "move_on_at", "fail_after", "fail_at")
                assert limited, f"{path}:{call.lineno}: a shield without a time limit"
    assert shields >= 8


def test_each_thread_is_left_behind_by_a_stop_or_only_computes() -> None:
    for path in sources():
        where = path.relative_to(PRODUCT).as_posix()
        for call in calls(path):
            if isinstance(call.func, ast.Attribute) and ast.unparse(call.func).endswith("to_thread.run_sync"):
                assert where in COMPUTES | {"disk/threads.py"}, f"{path}:{call.lineno}: use spegel_consul.disk.threads"
                limited = any(keyword.arg == "limiter" for keyword in call.keywords)
                assert limited, f"{path}:{call.lineno}: the default limiter is everybody's"


async def test_calls_that_hang_leave_the_default_limiter_to_others() -> None:
    dead = threading.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(trio.to_thread.current_default_thread_limiter().total_tokens + 5):
            nursery.start_soon(in_thread, dead.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        assert await trio.to_thread.run_sync(lambda: "goes on") == "goes on"
        nursery.cancel_scope.cancel()
    dead.set()
    # a thread that ends after its event loop never gives its place back, and the places are this process's
    with trio.fail_after(30):
        while threads._threads.borrowed_tokens:
            await trio.sleep(0.01)


async def test_a_file_that_is_opened_too_late_is_closed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    asked, dead, fds = threading.Event(), threading.Event(), list[int]()

    def opens() -> int:
        asked.set()
        dead.wait()
        fds.append(os.open(tmp_path / "file", os.O_RDONLY))
        return fds[0]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_in_thread, opens)
        await in_thread(asked.wait)
        nursery.cancel_scope.cancel()
    dead.set()
    with trio.fail_after(30):
        while not fds or Path(f"/proc/self/fd/{fds[0]}").exists():
            await trio.sleep(0.01)


DRIVER = """
import os, sys, threading
import {module} as module
real, calls = {target}, []
def dead(*given, **more):
    calls.append(1)
    if len(calls) <= {first}:
        return real(*given, **more)
    print("hangs", flush=True)
    threading.Event().wait()
{target} = dead
from spegel_consul.cli import main
sys.argv[0] = "spegel-consul"
main()
"""
DEAD = {
    "the layout at the start": ("spegel_consul.store.layout", "module.look", 0),
    "the layout later": ("spegel_consul.store.layout", "module.look", 1),
    "a manifest": ("spegel_consul.store.documents", "module._read", 0),
    "the password file": ("spegel_consul.http.basic_auth", "module.stamps", 1),
    "the members of the last run": ("spegel_consul.join.remembered_members", "module.Remembered._load", 0),
}


@pytest.mark.parametrize("what", DEAD)
def test_sigterm_ends_a_sidecar_whose_disk_is_dead(tmp_path: Path, what: str) -> None:
    module, target, first = DEAD[what]
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    (blobs / digest).write_text("{}")
    entry = {"digest": f"sha256:{digest}", "size": 2, "mediaType": OCI_MANIFEST}
    (tmp_path / "layout" / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (tmp_path / "users").write_text("a:b\n")
    driver = DRIVER.format(module=module, target=target, first=first)
    argv = [sys.executable, "-c", driver, "registry", "--bootstrap-kind=static", "--skip-preflight", "--hang-timeout=0"]
    argv += [f"--{name}-addr=127.0.0.1:0" for name in ("registry", "router", "metrics")]
    argv += [f"--layout-path={tmp_path / 'layout'}", f"--basic-auth-file={tmp_path / 'users'}"]
    argv += [f"--data-dir={tmp_path / 'data'}", "--static-bootstrap-peers=127.0.0.1:1"]
    log = tmp_path / "log"
    with log.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out) as process:
        try:
            deadline = time.monotonic() + 90
            while b"hangs" not in log.read_bytes():
                assert time.monotonic() < deadline, log.read_text()
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    said = log.read_text()
    assert '"stopped"' in said
    assert "Traceback" not in said


def test_the_interpreter_does_not_wait_for_a_thread_that_was_left() -> None:
    """What the promise rests on: Trio's threads are daemons."""
    program = """
import threading, trio
from spegel_consul.disk.threads import in_thread
async def main():
    with trio.move_on_after(0.1):
        await in_thread(threading.Event().wait)
trio.run(main)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
