"""The benchmark of the ring runs, and what it measures is what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lab.process import HANG

from bench.ring import miss
from bench.ring.measure import Figure

ROOT = Path(__file__).parents[2]


def test_a_small_ring_is_measured() -> None:
    options = ["--nodes", "5", "--keys", "50", "--lookups", "20", "--idle", "0.3"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.ring", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=True,
    )
    assert "A ring of 5" in done.stdout
    for figure in ("found by every node", "members known", "nodes that find a key of the other ring"):
        (line,) = [line for line in done.stdout.splitlines() if figure in line]
        assert "100.00 %" in line
    assert done.stderr == ""


def test_a_figure_without_limit_is_held() -> None:
    assert Figure("x", 9, "s").held
    assert Figure("x", 9, "s", 9).held
    assert not Figure("x", 9, "s", 8.9).held
    assert not Figure("x", 99, "%", 100, at_least=True).held


def test_the_tables_of_one_node_are_measured() -> None:
    options = ["--nodes", "60", "--keys", "20", "--idle", "0.1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.ring.table", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=True,
    )
    assert done.stderr == ""
    for figure in ("bytes of one member", "CPU of a quiet minute", "lookup, p50 and p95", "announcement of 10 keys"):
        assert figure in done.stdout


def test_figures_of_manifests_do_not_replace_those_of_blobs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert miss._kept_name(6, 0, "blobs") == "6 nodes"
    assert miss._kept_name(6, 2, "manifests") == "6 nodes, 2 busy processes beside it, manifests"
    monkeypatch.setattr(sys, "argv", ["miss", "--keep", "--tree", "elsewhere"])
    with pytest.raises(SystemExit):
        miss.main()
    assert "--tree" in capsys.readouterr().err
