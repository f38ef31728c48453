"""What a sidecar's log tells of the election, and a store with nothing in it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from lab.cluster import Node


def empty_layout(directory: Path) -> Path:
    layout = directory / "layout"
    layout.mkdir()
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    return layout


def log_events(node: Node) -> list[dict[str, Any]]:
    return [json.loads(line) for line in node.sidecar.log().splitlines() if line.startswith("{") and line.endswith("}")]


def election_events(node: Node) -> list[dict[str, Any]]:
    return [event for event in log_events(node) if event["event"] == "election"]


def last_state(node: Node) -> dict[str, Any]:
    return (election_events(node) or [{}])[-1]


def when(event: dict[str, Any]) -> float:
    """Of the wall clock."""
    return datetime.fromisoformat(event["timestamp"]).timestamp()
