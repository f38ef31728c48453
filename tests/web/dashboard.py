"""The queries of docs/grafana/spegel-consul.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "docs/grafana/spegel-consul.json"


def document() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text()))


def panels() -> Iterator[dict[str, Any]]:
    """All panels that have queries."""
    for panel in document()["panels"]:
        yield from (each for each in (panel, *panel.get("panels", ())) if each["type"] != "row")


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def filled(expression: str) -> str:
    """As Grafana sends it."""
    for variable, value in (("$__rate_interval", "1m"), ("$job", ".+"), ("$node", ".+")):
        expression = expression.replace(variable, value)
    return expression


def named(expression: str) -> set[str]:
    """The metrics in an expression of PromQL."""
    return set(re.findall(r"\b((?:spegel|http|process)_[a-z_]+|up)\b", expression))
