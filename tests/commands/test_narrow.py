"""Values that are longer than a line go on below themselves on a terminal, and stay whole in a pipe."""

from __future__ import annotations

import io
import sys

import click
import pytest

from spegel_consul.commands import leader, preflight
from spegel_consul.consul.api.client import KVEntry
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.endpoints.check import Check, fail, ok
from spegel_consul.preflight import node_checks as checks

COLUMNS = 40
ADDRESSES = ("/ip4/10.0.0.7/tcp/5001/p2p/12D3KooWQW1aVZ9Dcs3Rhxxd", "/ip4/10.99.0.7/tcp/5001")
SESSION = "b0a7fb2c-9d0d-4c05-8c3f-1d8a1a3c9f41"
RECORD = LeaderRecord("12D3KooW", ADDRESSES, node="client-7", registry="http://[b]10.0.0.7:5000")
ENTRY = KVEntry("spegel/leader", RECORD.to_json(session=SESSION, since=""), SESSION, 7)
RULE = 'service_prefix "spegel" { policy = "write" } # [bold]'
CHECKS = [
    ok("containerd", "10.0.0.7 answers and has 3 namespaces, all of which are served"),
    fail("rights", "no", RULE),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def scene(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(*_: object) -> KVEntry:
        return ENTRY

    async def run(*_: object) -> list[Check]:
        return CHECKS

    monkeypatch.setattr(leader, "_read_key", read)
    monkeypatch.setattr(checks, "run", run)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("TERM", "xterm")


def printed(monkeypatch: pytest.MonkeyPatch, out: io.StringIO, command: click.Command, *words: str) -> list[str]:
    monkeypatch.setattr(sys, "stdout", out)
    try:
        command.main(words, standalone_mode=False)
    except SystemExit as exc:
        assert exc.code == 1, "a check has failed"
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = printed(monkeypatch, io.StringIO(), leader.leader)
    assert f"  addrs     {' '.join(ADDRESSES)}" in whole
    narrow = printed(monkeypatch, Terminal(), leader.leader)
    assert max(map(len, narrow)) <= COLUMNS
    assert unwrapped(narrow, 12) == unwrapped(whole, 12)
    assert len(narrow) > len(whole)


def test_preflight(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--advertise-addr=10.0.0.9", "--bootstrap-kind=dns")
    whole = printed(monkeypatch, io.StringIO(), preflight.preflight, *words)
    *whole, verdict = whole
    assert whole == ["  ok  containerd: " + CHECKS[0].says, "fail  rights: no", f"      | {RULE}"]
    assert verdict.startswith("not ready: 1 of 2 checks failed (rights)")
    narrow = printed(monkeypatch, Terminal(), preflight.preflight, *words)
    assert max(map(len, narrow)) <= COLUMNS
    narrow = narrow[: narrow.index(next(line for line in narrow if line.startswith("not ready")))]
    assert unwrapped(narrow[:-2], 6) == unwrapped(whole[:-1], 6)
    assert unwrapped(narrow[-2:], 8) == unwrapped(whole[-1:], 8)
    assert len(narrow) > len(whole)


def unwrapped(lines: list[str], indent: int) -> list[str]:
    """Joined again by what a line that goes on begins with. Spaces are gone, since some of them were line ends."""
    joined: list[str] = []
    for line in lines:
        if line.startswith(" " * indent):
            joined[-1] += line
        else:
            joined.append(line)
    return [line.replace(" ", "") for line in joined]
