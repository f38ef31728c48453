"""What others say reaches a terminal as text only."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from spegel_consul.commands.leader import _lines
from spegel_consul.commands.preflight import preflight
from spegel_consul.commands.sidecar_client import print_hanging
from spegel_consul.endpoints import dial_back
from spegel_consul.endpoints.check import Check, Status, fail
from spegel_consul.endpoints.dial_back import Peer
from spegel_consul.preflight import node_checks as checks
from spegel_consul.preflight.node_checks import Subject

EVIL = "\x1b]0;owned\x07\x1b[2Kok\r\x9b31m"


def test_preflight(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(subject: Subject) -> list[Check]:
        return [fail("dial-back", f"10.0.0.7 can't connect ({EVIL})", f"one\n{EVIL}")]

    monkeypatch.setattr(checks, "run", run)
    result = CliRunner().invoke(preflight, ["--advertise-addr", "10.0.0.9", "--bootstrap-kind", "dns"])
    assert result.exit_code == 1, result.output
    assert "10.0.0.7 can't connect (" in result.output
    assert [line for line in result.output.split("\n") if not line.isprintable()] == []
    assert len(result.output.splitlines()) == 5


@pytest.mark.parametrize(
    ("kinds", "checked"),
    [
        ("consul", True),
        ("consul,static", True),
        ("file consul", True),
        ("catalog", True),
        ("nomad-service,catalog", True),
        ("dns", False),
        ("static,nomad-service", False),
    ],
)
def test_consul_is_checked_if_it_is_among_the_kinds(monkeypatch: pytest.MonkeyPatch, kinds: str, checked: bool) -> None:
    subjects: list[Subject] = []

    async def run(subject: Subject) -> list[Check]:
        subjects.append(subject)
        return []

    monkeypatch.setattr(checks, "run", run)
    result = CliRunner().invoke(preflight, ["--advertise-addr", "10.0.0.9"], env={"BOOTSTRAP_KIND": kinds})
    assert result.exit_code == 0, result.output
    assert [subject.consul is not None for subject in subjects] == [checked]


@pytest.mark.parametrize(
    ("words", "checked"),
    [
        (["--runtime=crio"], True),
        (["--runtime=crio", "--layout-path=/images"], False),
        (["--runtime=crio", "--runtime=containerd", "--layout-path=/images"], True),
    ],
)
def test_containerd_is_checked_if_it_is_served_or_pulls(
    monkeypatch: pytest.MonkeyPatch, words: list[str], checked: bool
) -> None:
    subjects: list[Subject] = []

    async def run(subject: Subject) -> list[Check]:
        subjects.append(subject)
        return []

    monkeypatch.setattr(checks, "run", run)
    result = CliRunner().invoke(preflight, ["--advertise-addr=10.0.0.9", "--bootstrap-kind=dns", *words])
    assert result.exit_code == 0, result.output
    assert [subject.containerd_sock is not None for subject in subjects] == [checked]


@pytest.mark.parametrize(
    ("given", "says"), [("konsul", "'konsul' is not one of"), (",", "none given, expected one of")]
)
def test_kinds_that_can_t_be_used_are_named(given: str, says: str) -> None:
    result = CliRunner().invoke(preflight, ["--advertise-addr", "10.0.0.9", "--bootstrap-kind", given])
    assert result.exit_code == 2
    assert f"{says} consul, catalog," in result.output


@pytest.mark.parametrize("seen", [EVIL, "10.0.0.9\nrm -rf /", "", "host"])
def test_a_peer_that_sees_no_address(monkeypatch: pytest.MonkeyPatch, seen: str) -> None:
    class Answer:
        status = 200

        def __enter__(self) -> Answer:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, limit: int) -> bytes:
            return dial_back.json.dumps({"address": seen, "reached": True}).encode()

    monkeypatch.setattr(dial_back.http.client.HTTPConnection, "request", lambda *_: None)
    monkeypatch.setattr(dial_back.http.client.HTTPConnection, "getresponse", lambda _: Answer())
    check = dial_back.ask(Peer("10.0.0.7", 5000), "10.0.0.9", 5000)
    assert check.status is Status.WARN
    assert "could not be asked" in check.says
    assert check.fix == ""


def test_leader(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"state": "held", "key": "k", "node": EVIL, "addrs": [EVIL, "/ip4/10.0.0.7"], "version": EVIL, "epoch": 7}
    print_hanging(_lines(found))
    text = capsys.readouterr().out.rstrip("\n")
    assert all(line.isprintable() for line in text.split("\n"))
    assert "/ip4/10.0.0.7" in text
    assert len(text.split("\n")) == 5
