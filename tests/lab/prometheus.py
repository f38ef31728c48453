"""A Prometheus with a configuration of the documentation."""

from __future__ import annotations

import json
import shutil
import urllib.parse
from pathlib import Path
from types import TracebackType
from typing import Any

from lab import parts
from lab.netns import Netns

_PORT = 9099


class Prometheus:
    """``configuration`` is text of YAML; but for its interval of 15 s, which is one second here."""

    def __init__(self, netns: Netns, directory: Path, configuration: str) -> None:
        assert "scrape_interval: 15s" in configuration
        self._netns, self._dir = netns, directory
        directory.mkdir()
        config = directory / "prometheus.yml"
        config.write_text(configuration.replace("scrape_interval: 15s", "scrape_interval: 1s"))
        argv = [parts.prometheus(), f"--config.file={config}", f"--storage.tsdb.path={directory}/data"]
        self._process = netns.start(
            "prometheus", [*argv, f"--web.listen-address=127.0.0.1:{_PORT}"], log_path=directory / "prometheus.log"
        )

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._process.kill9()
        shutil.rmtree(self._dir / "data", ignore_errors=True)

    def await_scrapes(self, nodes: int) -> None:
        """Wait until it has found ``nodes`` nodes and scraped each of them twice."""
        self._process.until(
            lambda: len(self.targets()) == nodes, timeout=30, what=f"Prometheus found {nodes} nodes through Consul"
        )
        self._process.until(
            lambda: len(self.values("rate(spegel_ready[10s])")) == nodes,
            timeout=30,
            what="it scraped each of them twice",
        )

    def ask(self, path: str, **query: str) -> Any:
        response = self._netns.request("GET", "127.0.0.1", _PORT, f"{path}?{urllib.parse.urlencode(query)}", timeout=20)
        document = json.loads(response.body)
        assert document["status"] == "success", document
        return document["data"]

    def values(self, expression: str, by: str = "node") -> dict[str, float]:
        """The values of ``expression`` by a label."""
        found = self.ask("/api/v1/query", query=expression)["result"]
        return {each["metric"].get(by, ""): float(each["value"][1]) for each in found}

    def targets(self) -> list[dict[str, Any]]:
        try:
            return list(self.ask("/api/v1/targets", state="active")["activeTargets"])
        except (OSError, ValueError):
            return []  # it is starting
