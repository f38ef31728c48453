"""``top``: the document of /api/cluster as tables, in a pipe and on a terminal of any size."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from click.testing import CliRunner, Result
from trio.testing import MockClock
from web.crowd import crowd
from web.test_cluster import HOSTILE, member, well

from spegel_consul.cli import cli
from spegel_consul.commands import sidecar_client, top
from spegel_consul.peers import PeerError
from spegel_consul.web.cluster import cluster_survey
from spegel_consul.web.cluster.metrics_ports import MetricsPorts
from spegel_consul.web.cluster.node_summary import NodeSummary, Transfer


async def document(monkeypatch: pytest.MonkeyPatch, others: int, answer: Any) -> Any:
    async def ask(client: object, peer: dict[str, Any], at: object) -> NodeSummary:
        return answer(int(peer["id"][-8:]))

    monkeypatch.setattr(cluster_survey, "_ask", ask)
    node = crowd(others)
    return json.loads(json.dumps((await cluster_survey.ClusterSurvey(node, MetricsPorts(node)).look()).to_json()))


def busy(number: int) -> NodeSummary:
    if number == 5:
        raise PeerError("did not answer within 2 s")
    moving = Transfer("docker.io/library/app:v1", "blobs", "n9", 3 << 20, 9 << 20, number << 20)
    return well(number, transfers=(moving,) if number % 4 == 0 else (), transfer_count=int(number % 4 == 0))


def run(found: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.setattr(sidecar_client, "get", lambda *_, **__: found)
    return CliRunner().invoke(cli, ["top", *arguments], env={"COLUMNS": ""})


async def test_in_a_pipe_there_are_all_rows_the_busiest_first(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    done = run(await document(monkeypatch, 30, busy), monkeypatch)
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert lines[0].startswith("30 of 33 nodes answered")
    assert "leader nomad-client-0003" in lines[0]
    nodes = lines[3:36]
    assert nodes[0].startswith("nomad-client-0028 ready 0 1.0 GiB 90 % 1.0 – 1 at 28.0 MiB/s")
    assert any("no answer" in line and "did not answer within 2 s" in line for line in nodes)
    assert lines[-1] == "nomad-client-0004 n9 app:v1 3.0 of 9.0 MiB 4.0 MiB/s"
    assert sum("app:v1" in line for line in lines) == 7


async def test_a_terminal_gets_as_many_rows_as_it_has(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    from rich.console import Console

    found = await document(monkeypatch, 300, busy)
    for height in (10, 24, 60):
        console = Console(width=200, height=height, file=sys.stdout)
        with console.capture() as capture:
            for part in top._parts(found, height - top._ROOM, False):
                console.print(part)
        assert capture.get().count("\n") <= max(height + 2, 14)
        assert "more: see --once" in capture.get()


async def test_json_is_the_document(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    found = await document(monkeypatch, 3, busy)
    assert json.loads(run(found, monkeypatch, "--json").output) == found


async def test_hostile_names_stay_text(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    def hostile(number: int) -> NodeSummary:
        nasty = HOSTILE[number % len(HOSTILE)]
        moving = [{"image": nasty, "peer": nasty, "kind": nasty}]
        texts = {"name": nasty, "version": nasty, "zone": nasty, "reason": f"[bold]{nasty}"}
        return NodeSummary.parse({"id": member(number), **texts, "warnings": [nasty], "transfers": moving})

    output = run(await document(monkeypatch, 9, hostile), monkeypatch, "--once").output
    assert not {"\x1b", "\u202e", "\x00"} & set(output)
    assert "[bold]" in output
    assert max(map(len, output.splitlines())) < 1500


def test_who_asks_an_older_node_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run({}, monkeypatch)
    assert done.exit_code == sidecar_client.EXIT_UNREACHABLE
    assert "lacks fields" in done.output
