"""The dashboard: each metric is in a panel, Grafana's schema permits the file, and Prometheus parses the queries."""

from __future__ import annotations

import copy
import enum
import json
import re
import runpy
import subprocess
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from lab import parts
from web.dashboard import FILE, document, expressions, filled, named, panels

REFERENCE = runpy.run_path(str(FILE.parents[2] / ".ci/metrics_reference.py"))
OURS = re.compile(r"(spegel|http)_")


def test_the_file_is_fresh() -> None:
    script = FILE.parents[2] / ".ci/dashboard.py"
    assert FILE.read_text() == runpy.run_path(str(script))["dashboard"](), (
        "stale: python .ci/dashboard.py >docs/grafana/spegel-consul.json"
    )


def test_each_query_names_a_metric_that_exists() -> None:
    assert len(expressions()) > 50
    known = REFERENCE["names"]() | {"up"}
    for expression in expressions():
        assert named(expression), expression
        assert named(expression) <= known, expression


def test_each_metric_is_in_a_panel() -> None:
    shown = set().union(*(named(expression) for expression in expressions()))
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in REFERENCE["names"]() if OURS.match(name)}
    assert ours - shown == set()


def test_labels_of_legends_and_groups_are_labels_of_the_metric() -> None:
    labels = REFERENCE["labels"]()
    for panel in panels():
        for target in panel["targets"]:
            [name] = {re.sub("_(bucket|sum|count)$", "", each) for each in named(target["expr"])}
            known = {"node", "job", "le", *labels.get(name, ())}
            used = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            for group in re.findall(r"by \(([^)]*)\)", target["expr"]):
                used |= {each.strip() for each in group.split(",")}
            used |= set(re.findall(r'(\w+)=~?"', target["expr"]))
            assert used <= known, f"{panel['title']}: {used - known}"


def test_panels_have_numbers_places_and_titles_of_their_own() -> None:
    every = document()["panels"]
    for what in ("id", "title"):
        assert len({panel[what] for panel in every}) == len(every), what
    taken: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        columns, rows = (range(place[start], place[start] + place[size]) for start, size in (("x", "w"), ("y", "h")))
        cells = {(x, y) for x in columns for y in rows}
        assert columns.stop <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


def faults(document: dict[str, Any]) -> list[str]:
    """What Grafana's schema does not permit: fields that it does not have, values of another type, unknown choices."""
    register_default_plugins()
    read = Dashboard.from_json(copy.deepcopy(document))
    written = json.loads(JSONEncoder().encode(read))
    return [*_lost(document, written, "dashboard"), *_mistyped(read, "dashboard")]


def _lost(here: Any, there: Any, where: str) -> Iterator[str]:
    """Fields that the schema's classes did not take, because they don't have them."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key, value in here.items():
            if key in there:
                yield from _lost(value, there[key], f"{where}.{key}")
            else:
                yield f"{where}.{key} is no field"
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for number, (one, other) in enumerate(zip(here, there, strict=True)):
            yield from _lost(one, other, f"{where}[{number}]")
    elif here != there:
        yield f"{where} is {here!r}, and would be written as {there!r}"


def _mistyped(value: Any, where: str, hint: Any = None) -> Iterator[str]:
    if hint is not None and not _fits(value, hint):
        yield f"{where} is {value!r} and not {hint}"
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from _mistyped(each, f"{where}[{number}]")
    elif hasattr(value, "to_json") and not isinstance(value, enum.Enum):
        hints = typing.get_type_hints(type(value))
        for name, each in vars(value).items():
            yield from _mistyped(each, f"{where}.{name}", hints[name])


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(_fits(each, arguments[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, arguments[1]) for each in value.values())
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [each.value for each in hint]
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def test_grafanas_schema_permits_the_file() -> None:
    assert faults(document()) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda board: board.update(refreshed="30s"), "refreshed is no field"),
        (lambda board: board["panels"][1].update(tittle="a"), "tittle is no field"),
        (lambda board: board["panels"][1]["options"].update(graphMode="pie"), "graph_mode"),
        (lambda board: board["panels"][1].update(id="2"), "id_val"),
        (lambda board: board["panels"][1]["targets"][0].update(expression="up"), "expression is no field"),
        (lambda board: board["panels"][-1]["fieldConfig"]["defaults"].update(min="0"), "min_val"),
        (lambda board: board["templating"]["list"][1].update(type="question"), "type_val"),
        (lambda board: board["panels"][1]["gridPos"].update(w=4.5), "w is 4.5"),
    ],
)  # fmt: skip
def test_what_the_schema_does_not_permit_is_found(change: typing.Callable[[Any], None], fault: str) -> None:
    changed = document()
    change(changed)
    assert len([each for each in faults(changed) if fault in each]) == 1, faults(changed)


@pytest.mark.real
def test_prometheus_parses_each_query(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": filled(each)} for number, each in enumerate(expressions())]
    file = tmp_path / "queries.yml"
    promtool = parts.prometheus().with_name("promtool")
    for wrong in (False, True):
        if wrong:
            rules[-1]["expr"] += ")"
        file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
        done = subprocess.run(
            [promtool, "check", "rules", file], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode == 0) is not wrong, done.stdout + done.stderr
