"""``FakeNomad``: the part of Nomad's API that the bootstraps use.

It keeps variables with locks, and services, as Nomad's servers do (nomad/variables_endpoint.go, nomad/locks.go): a lock
ends two TTLs after the last renewal, is then kept for the lock-delay, and its value stays; a conflict is answered with
the variable; only its holder sees the lock.  It stands behind httpx's mock transport, for virtual time.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from urllib.parse import parse_qsl

import httpx
import trio

from spegel_consul.consul.api.duration import parse_duration
from spegel_consul.join.sources.nomad_api import NomadClient, NomadSettings


class FakeNomad:
    def __init__(self) -> None:
        self._index = 10
        self._written = trio.Event()
        self.variables: dict[str, dict] = {}
        self.services: dict[str, list[dict]] = {}
        self.links: dict[str, int | str] = {}
        """By node: a status to answer with, "read-only", "writes fail", "cut", "hang" or "html"; absent is well."""
        self.losing: str | None = None
        """The operation whose answers are lost on their way."""
        self.calls: Counter[str] = Counter()
        self.has_locks = True
        """False for one before 1.7, which ignores the operations on locks: what asks for one is a plain write."""

    def client(self, node: str = "n", settings: NomadSettings | None = None) -> NomadClient:
        async def handle(request: httpx.Request) -> httpx.Response:
            await trio.lowlevel.checkpoint()
            fault = self.links.get(node)
            if fault == "cut":
                raise httpx.ConnectError("connection refused", request=request)
            if fault == "hang":
                await trio.sleep_forever()
            if fault == "html":
                return httpx.Response(200, text="<html>log in</html>")
            if isinstance(fault, int):
                return httpx.Response(fault, text="because I say so\nand more")
            if fault == "read-only" and request.method != "GET":
                return httpx.Response(403, text="Permission denied")
            if fault == "writes fail" and request.method != "GET":
                self.calls["failed write"] += 1
                return httpx.Response(500, text="no space left on device")
            answer = await self._observed(request)
            if self.losing is not None and self.losing in request.url.params:
                raise httpx.ReadError("reset by peer", request=request)
            return answer

        return NomadClient(settings or NomadSettings(), transport=httpx.MockTransport(handle))

    def write(self, path: str, items: dict[str, str]) -> None:
        """As an operator, whatever the lock."""
        variable = self.variables.setdefault(path, {"Path": path, "Lock": None})
        variable["Items"], variable["ModifyIndex"] = items, self._bump()

    def holder(self, path: str = "nomad/jobs/spegel/leader") -> str | None:
        """The peer id of the holder of the lock."""
        variable = self.variables.get(path)
        return variable["Items"].get("peer_id") if variable and self._locked(variable) else None

    def _bump(self) -> int:
        self._index += 1
        self._written.set()
        self._written = trio.Event()
        return self._index

    def _locked(self, variable: dict) -> bool:
        lock = variable["Lock"]
        return lock is not None and trio.current_time() < lock["expires"] + lock["delay"]

    async def _observed(self, request: httpx.Request) -> httpx.Response:
        query = dict(parse_qsl(request.url.query.decode(), keep_blank_values=True))
        if request.url.path.startswith("/v1/service/"):
            return httpx.Response(200, json=self.services.get(request.url.path.removeprefix("/v1/service/"), []))
        path = request.url.path.removeprefix("/v1/var/")
        if request.method == "GET":
            self.calls["read"] += 1
            return await self._read(path, query)
        operation = next((name for name in query if name.startswith("lock-")), "set")
        self.calls[operation] += 1
        body = json.loads(request.content)
        if not self.has_locks:
            operation, body = "set", {**body, "Lock": None}
        if operation == "set" and not body.get("Items"):
            return httpx.Response(400, text="variable missing required Items object")
        return self._write(path, operation, body)

    async def _read(self, path: str, query: dict[str, str]) -> httpx.Response:
        if "index" in query:
            with trio.move_on_after(parse_duration(query["wait"])):
                while self.variables.get(path, {}).get("ModifyIndex", self._index) <= int(query["index"]):
                    await self._written.wait()
        variable = self.variables.get(path)
        if variable is None:
            return httpx.Response(404, text="variable not found", headers={"X-Nomad-Index": str(self._index)})
        shown = {name: value for name, value in variable.items() if name != "Lock"}
        return httpx.Response(200, json=shown, headers={"X-Nomad-Index": str(variable["ModifyIndex"])})

    def _write(self, path: str, operation: str, body: dict) -> httpx.Response:
        variable, given = self.variables.get(path), body.get("Lock") or {}
        mine = variable is not None and variable["Lock"] is not None and variable["Lock"]["ID"] == given.get("ID")
        if operation == "lock-renew":
            if variable is None:
                return httpx.Response(404, text="variable doesn't exist")
            if not mine or trio.current_time() >= variable["Lock"]["expires"]:
                return httpx.Response(409, text="attempting to modify locked variable")
            variable["Lock"]["expires"] = trio.current_time() + 2 * variable["Lock"]["ttl"]
            return httpx.Response(200, json={"Path": path})
        if variable is not None and self._locked(variable) and not mine:
            return httpx.Response(409, json={name: value for name, value in variable.items() if name != "Lock"})
        if operation == "lock-acquire":
            ttl = parse_duration(given["TTL"])
            assert ttl >= 10, "Nomad refuses shorter ones"
            self.write(path, body["Items"])
            self.variables[path]["Lock"] = {
                "ID": str(uuid.uuid4()),
                "ttl": ttl,
                "delay": parse_duration(given["LockDelay"]),
                "expires": trio.current_time() + 2 * ttl,
            }
            return httpx.Response(200, json={"Path": path, "Lock": {"ID": self.variables[path]["Lock"]["ID"]}})
        if "TTL" in given or (operation == "lock-release" and "Items" in body):
            return httpx.Response(400, text="not in this operation")
        if operation == "lock-release":
            variable["Lock"], variable["ModifyIndex"] = None, self._bump()
        else:
            self.write(path, body["Items"])
        return httpx.Response(200, json={"Path": path})
