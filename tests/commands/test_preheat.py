"""What the command makes of a node's lines: a row for each runtime, and an exit code."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from spegel_consul.cli import cli
from spegel_consul.commands import preheat, sidecar_client

APP = "docker.io/library/app:v1"


def pull(state: str, reason: str | None = None, runtime: str = "docker") -> dict[str, Any]:
    return {"runtime": runtime, "state": state, "seconds": 1.25, "bytes": 2048, "reason": reason}


def row(node: str, state: str, *runtimes: dict[str, Any], reason: str | None = None, missing: bool = False) -> Any:
    return {"node": node, "id": node, "state": state, "runtimes": runtimes, "reason": reason, "missing": missing}


def line(*rows: Any, done: bool = True, problem: str | None = None) -> dict[str, Any]:
    return {"image": APP, "asked": 2, "nodes": rows, "done": done, "problem": problem}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command against a node that sends these lines; ``run.asked`` is what it was asked."""

    def run(*lines: dict[str, Any], words: tuple[str, ...] = ()) -> Result:
        def reports(node: str, path: str, **query: str) -> Iterator[dict[str, Any]]:
            run.asked = (path, query)  # type: ignore[attr-defined]
            yield from lines

        monkeypatch.setattr(sidecar_client, "reports", reports)
        return CliRunner().invoke(cli, ["preheat", APP, *words])

    return run


def test_all_have_it(run: Any) -> None:
    begun = line(row("n2", "waiting"), row("n1", "pulling", pull("pulling")), done=False)
    done = run(begun, line(row("n1", "done", pull("done")), row("n2", "done", pull("left out", "old"), pull("done"))))
    assert done.exit_code == 0, done.output
    assert [text.split() for text in done.output.splitlines()] == [
        ["node", "runtime", "state", "seconds", "bytes", "reason"],
        ["n1", "docker", "done", "1.2", "2.0", "KiB"],
        ["n2", "docker", "left", "out", "1.2", "2.0", "KiB", "old"],
        ["n2", "docker", "done", "1.2", "2.0", "KiB"],
    ]
    assert run.asked == ("/api/preheat", {"image": APP, "nodes": "all", "within": "600"})


def test_some_lack_it(run: Any) -> None:
    away = row("n2", "failed", reason="can't be reached")
    done = run(line(row("n1", "done", pull("done")), away), words=("--nodes=2", "--timeout=90s"))
    assert done.exit_code == 1
    assert f"1 of 2 nodes do not have {APP}" in done.output
    assert ["n2", "–", "failed", "–", "–", "can't", "be", "reached"] in [
        text.split() for text in done.output.splitlines()
    ]
    assert run.asked[1] == {"image": APP, "nodes": "2", "within": "90"}


def test_no_registry_has_it(run: Any) -> None:
    absent = [row(name, "failed", pull("failed", "not found"), missing=True) for name in ("n1", "n2")]
    assert run(line(*absent)).exit_code == 4
    assert run(line(absent[0], row("n2", "failed", reason="away"))).exit_code == 1


def test_as_json_the_last_states_are_one_document(run: Any) -> None:
    begun = line(row("n2", "waiting"), row("n1", "waiting"), done=False)
    done = run(begun, line(row("n2", "failed", missing=True), done=False), line(row("n1", "done")), words=("--json",))
    assert done.exit_code == 1
    found = json.loads(done.stdout.splitlines()[0])
    assert [(each["node"], each["state"]) for each in found["nodes"]] == [("n1", "done"), ("n2", "failed")]
    assert found["done"] is True


@pytest.mark.parametrize("lines", [[], [line(row("n1", "pulling"), done=False)]])
def test_a_node_that_dies_in_the_middle(run: Any, lines: list[Any]) -> None:
    done = run(*lines)
    assert done.exit_code == 1
    assert "ended the connection, or fell silent, before the preheat was over" in done.output


def test_a_preheat_that_failed_as_a_whole(run: Any) -> None:
    done = run(line(row("n1", "done", pull("done")), problem="a\x1b[2Jdefect"))
    assert done.exit_code == 1
    assert "the preheat failed: a\ufffd[2Jdefect" in done.output


def test_texts_of_peers_do_not_reach_the_terminal(run: Any) -> None:
    done = run(line(row("[red]n\x1b1", "failed", pull("\x1bx", "[bold]\x07why", "\u202edocker"))))
    assert done.exit_code == 1
    assert not {"\x1b", "\x07", "\u202e"} & set(done.output)
    assert "[red]n" in done.output
    assert "[bold]" in done.output


@pytest.mark.parametrize("words", [("--nodes=0",), ("--nodes=x",), ("--all", "--nodes=2"), ("--timeout=x",)])
def test_wrong_options_are_refused(run: Any, words: tuple[str, ...]) -> None:
    assert run(line(), words=words).exit_code == 2


def test_a_layout_has_no_runtime_to_ask() -> None:
    done = CliRunner().invoke(cli, ["registry", "--bootstrap-kind=dns", "--dns-bootstrap-domain=x.example",
                                    "--preheat=peers", "--layout-path=/x"])  # fmt: skip
    assert done.exit_code == 2
    assert "--preheat=peers needs a runtime" in done.output


@pytest.mark.parametrize("without", ["node", "id", "state", "runtimes", "missing"])
def test_an_older_node_lacks_fields(run: Any, without: str) -> None:
    lacks = row("n1", "failed")
    del lacks[without]
    done = run(line(lacks))
    assert done.exit_code == 3
    assert "lacks fields that version" in done.output


def test_a_terminal_is_told_of_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def reports(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield line(row("n1", "pulling"), row("n2", "waiting"), done=False)
        yield line(row("n1", "done", pull("done")), row("n2", "done", pull("done")))

    terminal = Terminal()
    monkeypatch.setattr(sidecar_client, "reports", reports)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", terminal)
    preheat.preheat.main([APP], standalone_mode=False)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "2 nodes: 2 done" in text
    assert "runtime" not in text, "a narrow terminal has fewer columns"
    assert max(map(len, re.split(r"[\r\n]+", text))) <= 60


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True
