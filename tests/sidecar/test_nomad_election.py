# Two whole sidecars in one process, with all but Nomad's API: that is a fake with locks, because those of a real Nomad
# need 1.7, and tests/nomad runs with older ones as well.

"""Sidecars that elect a leader by the lock on a Nomad variable."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from spegel_consul import cli
from spegel_consul.sidecar import address_watch, lifecycle
from spegel_consul.sidecar.prepare import PreparedNode, prepare
from spegel_consul.sidecar.settings import Settings
from tests.join.fakenomad import FakeNomad

VARIABLE = "team/leader"


def settings(name: str, kinds: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of the command's flags."""
    taken: list[Settings] = []
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": []}))
    arguments = [f"--{port}-addr=127.0.0.1:0" for port in ("registry", "router", "metrics")]
    arguments += [f"--node-name={name}", f"--data-dir={directory / name}", f"--layout-path={directory}"]
    arguments += [f"--bootstrap-kind={kinds}", f"--nomad-variable={VARIABLE}", "--hang-timeout=0", "--skip-preflight"]
    with monkeypatch.context() as patched:
        patched.setattr("trio.run", lambda function, settings: taken.append(settings))
        patched.setattr("spegel_consul.sidecar.watchdog.become_guarded", lambda silence: -1)
        patched.setattr("signal.signal", lambda number, handler: None)
        cli.cli.main(["registry", *arguments], standalone_mode=False)
    return taken[0]


@dataclass
class Sidecar:
    node: PreparedNode
    stop: trio.MemorySendChannel[int]
    ended: trio.Event = field(default_factory=trio.Event)
    url: str = field(init=False)

    def __post_init__(self) -> None:
        self.url = self.node.metrics_url  # asked for before anything may close the sockets

    @classmethod
    async def start(cls, settings: Settings, nomad: FakeNomad, nursery: trio.Nursery) -> Sidecar:
        stop, signals = trio.open_memory_channel[int](1)
        sidecar = cls(replace(prepare(settings), nomad=nomad.client(settings.node_name)), stop)

        async def run() -> None:
            await lifecycle._run(settings, sidecar.node, signals)
            sidecar.ended.set()

        nursery.start_soon(run)
        return sidecar

    async def leads(self) -> float | None:
        """``spegel_leader``; None if there is none."""
        found = re.search(r"^spegel_leader (\S+)$", (await self._get("/metrics")).text, re.MULTILINE)
        return float(found[1]) if found else None

    async def status(self) -> dict[str, Any]:
        document: dict[str, Any] = (await self._get("/api/status")).json()
        return document

    async def _get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(verify=False, trust_env=False) as client:
            return (await client.get(self.url + path)).raise_for_status()


async def until(holds: Callable[[], Any]) -> None:
    while True:
        try:
            if await holds():
                return
        except httpx.TransportError:
            pass
        await trio.sleep(0.05)


@pytest.mark.parametrize("kinds", ["nomad-var", "nomad-service,nomad-var"])
async def test_one_of_two_sidecars_leads_and_hands_over_when_it_stops(
    kinds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nomad = FakeNomad()
    both = [settings(name, kinds, tmp_path, monkeypatch) for name in ("n1", "n2")]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            first, second = [await Sidecar.start(each, nomad, nursery) for each in both]
            await until(lambda: _agree(nomad, first, second))
            if await second.leads():
                first, second = second, first
            leader = nomad.variables[VARIABLE]["Items"]
            assert {key: leader[key] for key in ("state", "registry", "http")} == {
                "state": "held",
                "registry": first.node.registry_url,
                "http": f"{first.url}/id",
            }
            for sidecar, me in ((first, True), (second, False)):
                shown = (await sidecar.status())["leader"]
                assert (shown["node"], shown["me"]) == (leader["node"], me)

            await first.stop.send(15)
            await until(second.leads)
            assert nomad.variables[VARIABLE]["Items"]["registry"] == second.node.registry_url
            assert (await second.status())["leader"]["me"]
            await first.ended.wait()

            await second.stop.send(15)
            await second.ended.wait()
            assert nomad.variables[VARIABLE]["Items"]["state"] == "vacant"
            assert nomad.holder(VARIABLE) is None


async def test_a_sidecar_without_its_address_does_not_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_watch, "EVERY", math.inf)  # the test looks in its place
    nomad = FakeNomad()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            sidecar = await Sidecar.start(settings("n1", "nomad-var", tmp_path, monkeypatch), nomad, nursery)
            await until(sidecar.leads)
            sidecar.node.address_watch.observed.set("lost")
            await until(lambda: _vacant(nomad))
            assert not await sidecar.leads()
            sidecar.node.address_watch.observed.set(None)
            await until(sidecar.leads)
            await sidecar.stop.send(15)


async def _vacant(nomad: FakeNomad) -> bool:
    await trio.lowlevel.checkpoint()
    return nomad.holder(VARIABLE) is None


async def _agree(nomad: FakeNomad, *sidecars: Sidecar) -> bool:
    """Whether one of them leads, all say so, and all are in one ring."""
    if nomad.holder(VARIABLE) is None or sorted([await each.leads() or 0 for each in sidecars]) != [0, 1]:
        return False
    shown = [await each.status() for each in sidecars]
    return len({each["leader"] and each["leader"]["node"] for each in shown}) == 1 and all(
        each["ring"]["members"] == 1 for each in shown
    )
