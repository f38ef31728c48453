"""The certificate in the data directory, for sidecars that restart while Consul is away."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from lab.connect_authority import HOURS
from structlog.testing import capture_logs

from spegel_consul.consul.authority import consul_tls
from spegel_consul.consul.authority.consul_tls import ConsulTls
from spegel_consul.consul.authority.kept_identity import IDENTITY_FILE
from tests.consul.authority.conftest import Authority, until
from tests.consul.authority.handshake import agree


@pytest.fixture
def run_once(authority: Authority, tmp_path: Path) -> Callable[[], Awaitable[ConsulTls]]:
    """A run that has left its file; then Consul is away."""

    async def run() -> ConsulTls:
        tls = authority.make(tmp_path)
        async with trio.open_nursery() as nursery:
            await nursery.start(tls.run)
            await until((tmp_path / IDENTITY_FILE).exists)
            nursery.cancel_scope.cancel()
        authority.consul.links["n1"] = "cut"
        return tls

    return run


async def test_the_first_certificate(authority: Authority, tmp_path: Path) -> None:
    one, two = await authority.start(tmp_path / "new"), await authority.start()
    assert (one.problem, two.problem) == (None, None)
    assert agree(one, two)
    assert one.expires == pytest.approx(time.time() + 72 * HOURS, abs=60)
    kept = tmp_path / "new" / IDENTITY_FILE
    await until(kept.exists)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


async def test_a_restart_while_consul_is_away(
    authority: Authority, run_once: Callable[[], Awaitable[ConsulTls]], tmp_path: Path
) -> None:
    before = await run_once()
    began = trio.current_time()
    after = await authority.start(tmp_path)
    assert trio.current_time() - began < 1
    assert after.problem is None
    assert agree(before, after)


async def test_a_file_that_has_expired_is_not_used(
    authority: Authority,
    run_once: Callable[[], Awaitable[ConsulTls]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority.consul.issue(leaf=authority.ca.leaf(begins=-9 * HOURS, ends=1))
    await run_once()
    after = authority.make(tmp_path)
    after._clock = lambda: time.time() + 60
    monkeypatch.setattr(consul_tls, "_FIRST", 0.1)
    await authority.nursery.start(after.run)
    assert after.server() is None
    assert after.problem is not None
    assert after.problem.startswith("no certificate for peers: ")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"leaf": {"a": "b"}, "roots": {}}', "\0", "[" * 100_000])
async def test_a_damaged_file_is_replaced(authority: Authority, tmp_path: Path, content: str) -> None:
    file = tmp_path / IDENTITY_FILE
    file.write_text(content)
    with capture_logs() as said:
        tls = await authority.start(tmp_path)
    assert [line["event"] for line in said] == ["certificate is not kept", "certificate"]
    assert agree(tls, tls)
    await until(lambda: file.read_text() != content)
    assert json.loads(file.read_text())["leaf"]["serial"]


async def test_a_data_directory_that_can_not_be_written(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with capture_logs() as said:
        tls = await authority.start(tmp_path / "file" / "below")
        await until(lambda: len(said) > 1)
    assert "certificate is not kept" in [line["event"] for line in said]
    assert agree(tls, tls)
