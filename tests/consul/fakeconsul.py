"""``FakeConsul``: sessions, locks, blocking queries, agent services, and links that fail in chosen ways.

An agent and the servers behind it run in this process, behind httpx's mock transport.  Without sockets a test with
trio's autojump clock runs through minutes of failover in milliseconds.  The behaviour follows measurements of Consul
1.8: a session ends two TTLs after the last renewal, invalidation starts the lock-delay and release does not, the index
of a missing key is that of the table, and a blocking query may return without a change.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections import Counter
from urllib.parse import parse_qsl, unquote

import httpx
import trio

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.api.duration import parse_duration

MIN_TTL = 10.0


class FakeConsul:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._index = 10
        self._written = trio.Event()
        self.kv: dict[str, dict] = {}
        self.sessions: dict[str, dict] = {}
        self.delayed: dict[str, float] = {}
        self.services: dict[str, dict] = {}
        self.ttl_checks: dict[str, tuple[float, float]] = {}
        self.links: dict[str, str] = {}
        """By node: "cut", "hang", "proxy404", "html", "denied", "no-leader", "read-only", "no-service",
        "no-session", "node-critical", "no-release"; else well."""
        self.checks_passing = True
        self.connect: dict[str, dict] = {}
        """Answers for "roots" and "leaf"; Connect is off while there is none."""
        self.calls: Counter[str] = Counter()
        self.tokens: list[str | None] = []

    def client(self, node: str, settings: ConsulSettings | None = None) -> ConsulClient:
        async def handle(request: httpx.Request) -> httpx.Response:
            await trio.lowlevel.checkpoint()
            return await self._link(node, request)

        return ConsulClient(settings or ConsulSettings(), transport=httpx.MockTransport(handle))

    def holder(self, key: str = "spegel/leader") -> str | None:
        return self.kv.get(key, {}).get("Session")

    def value(self, key: str = "spegel/leader") -> bytes:
        return self.kv[key]["Value"]

    def write(self, value: bytes, key: str = "spegel/leader") -> None:
        """As an operator with `consul kv put`: the lock stays."""
        entry = self.kv.setdefault(key, {"Key": key, "LockIndex": 0, "Flags": 0})
        entry["Value"], entry["ModifyIndex"] = value, self._bump()

    def delete(self, key: str = "spegel/leader") -> None:
        del self.kv[key]
        self._bump()

    def invalidate(self, session: str) -> None:
        ended = self.sessions.pop(session, None)
        if ended is None:
            return
        for key, entry in list(self.kv.items()):
            if entry.get("Session") != session:
                continue
            if ended["LockDelay"]:
                self.delayed[key] = trio.current_time() + ended["LockDelay"]
            if ended["Behavior"] == "delete":
                del self.kv[key]
                self._bump()
            else:
                del entry["Session"]
                entry["ModifyIndex"] = self._bump()

    def issue(self, *, leaf: dict | None = None, roots: dict | None = None) -> None:
        """Answer questions for certificates with these from now on."""
        self.connect |= {name: given for name, given in (("leaf", leaf), ("roots", roots)) if given is not None}
        self._bump()

    def disable_connect(self) -> None:
        """As servers after a restart without ``connect { enabled = true }``."""
        self.connect.clear()
        self._bump()

    def forget_services(self) -> None:
        self.services.clear()
        self._bump()

    def _bump(self) -> int:
        self._index += 1
        self._written.set()
        self._written = trio.Event()
        return self._index

    def _passed(self, check: str, ttl: float) -> None:
        known = check in self.ttl_checks
        self.ttl_checks[check] = (ttl, trio.current_time() + ttl)
        if not known:
            self._nursery.start_soon(self._fail, check)

    async def _fail(self, check: str) -> None:
        """Sessions that are bound to a check end with it."""
        while trio.current_time() < self.ttl_checks[check][1]:
            await trio.sleep_until(self.ttl_checks[check][1])
        del self.ttl_checks[check]
        for session, body in list(self.sessions.items()):
            if {"ID": check} in body.get("ServiceChecks", ()):
                self.invalidate(session)

    async def _expire(self, session: str) -> None:
        while session in self.sessions and trio.current_time() < self.sessions[session]["expires"]:
            await trio.sleep_until(self.sessions[session]["expires"])
        self.invalidate(session)

    async def _link(self, node: str, request: httpx.Request) -> httpx.Response:
        fault = self.links.get(node)
        if fault == "cut":
            raise httpx.ConnectError("", request=request) from ConnectionRefusedError("connection refused")
        if fault == "hang":
            await trio.sleep_forever()
        if fault == "proxy404":
            return httpx.Response(404, text="<html>not here</html>")
        if fault == "html":
            return httpx.Response(200, text="<html>log in</html>", headers={"X-Consul-Index": "7"})
        if fault == "no-service" and request.url.path.startswith("/v1/agent/service/"):
            return httpx.Response(403, text="Permission denied")
        if fault == "no-session" and request.url.path == "/v1/session/create":
            return httpx.Response(500, text="rpc error making call: EOF")
        if fault == "no-release" and "release" in request.url.params:
            return httpx.Response(500, text="rpc error making call: EOF")
        if fault == "node-critical" and request.url.path == "/v1/session/create":
            self.calls["PUT session/create"] += 1
            return httpx.Response(500, text="Check 'serfHealth' is in critical state")
        if fault == "denied" or (fault == "read-only" and request.method != "GET"):
            return httpx.Response(403, text="Permission denied")
        if fault == "no-leader":
            return httpx.Response(500, text="No cluster leader")
        answer = await self._answer(request)
        if self.links.get(node) in ("cut", "hang"):  # the link broke while the answer was awaited
            if self.links[node] == "hang":
                await trio.sleep_forever()
            raise httpx.ReadError("", request=request)
        return answer

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        query = dict(parse_qsl(request.url.query.decode(), keep_blank_values=True))
        path = unquote(request.url.path)
        self.tokens.append(request.headers.get("X-Consul-Token"))
        self.calls[f"{request.method} {'/'.join(path.split('/')[2:4])}"] += 1
        if path.startswith("/v1/kv/"):
            key = path.removeprefix("/v1/kv/")
            return await self._get(key, query) if request.method == "GET" else self._put(key, query, request.content)
        if path.startswith("/v1/session/"):
            return self._session(path.removeprefix("/v1/session/"), request)
        if path == "/v1/agent/self":
            return _json({"Config": {"NodeName": "fake"}})
        if path == "/v1/agent/services":
            return _json(self.services)
        if path == "/v1/agent/service/register":
            body = json.loads(request.content)
            self.services[body["ID"]] = {**body, "Service": body["Name"]}
            self._bump()
            for check in body.get("Checks", ()):
                if "TTL" in check:
                    self._passed(check["CheckID"], parse_duration(check["TTL"]))
            return _json(None)
        if path.startswith("/v1/agent/check/pass/"):
            check = path.removeprefix("/v1/agent/check/pass/")
            if check not in self.ttl_checks or not any(check.startswith(f"{service}:") for service in self.services):
                return httpx.Response(500, text=f'CheckID "{check}" does not have associated TTL')
            self._passed(check, self.ttl_checks[check][0])
            return _json(None)
        if path.startswith("/v1/agent/service/deregister/"):
            self.services.pop(path.rsplit("/", 1)[1], None)
            self._bump()
            return _json(None)
        if path.startswith("/v1/health/service/"):
            await self._block(query, lambda: self._index)
            rows = [
                {"Node": {"Node": "fake", "Address": "10.0.0.1"}, "Service": body, "Checks": []}
                for body in self.services.values()
                if body["Service"] == path.rsplit("/", 1)[1]
            ]
            return _json(rows, self._index)
        if path.startswith("/v1/agent/connect/ca/"):
            await self._block(query, lambda: self._index)
            if not self.connect:
                return httpx.Response(500, text="Connect must be enabled in order to use this endpoint")
            what = path.removeprefix("/v1/agent/connect/ca/").split("/")[0]
            if what not in self.connect:
                await trio.sleep_forever()
            return _json(self.connect[what], self._index)
        if path == "/v1/status/leader":
            return _json("10.0.0.1:8300")
        raise AssertionError(f"unexpected request {request.method} {path}")

    def _session(self, rest: str, request: httpx.Request) -> httpx.Response:
        verb, _, session = rest.partition("/")
        if verb == "create":
            body = json.loads(request.content)
            ttl = parse_duration(body["TTL"])
            if ttl < MIN_TTL:
                text = f"Invalid Session TTL '{int(ttl * 1e9)}', must be between [10s=24h0m0s]"
                return httpx.Response(500, text=text)
            if body.get("ServiceChecks") and not self.checks_passing:
                return httpx.Response(500, text=f"Missing check '{body['ServiceChecks'][0]['ID']}' registration")
            session = str(uuid.uuid4())
            delay = 0.0 if body["LockDelay"] == "0s" else parse_duration(body["LockDelay"])
            self.sessions[session] = {**body, "ttl": ttl, "LockDelay": delay, "expires": trio.current_time() + 2 * ttl}
            self._nursery.start_soon(self._expire, session)
            return _json({"ID": session})
        if verb == "renew":
            if session not in self.sessions:
                return httpx.Response(404, text=f"Session id '{session}' not found")
            found = self.sessions[session]
            found["expires"] = trio.current_time() + 2 * found["ttl"]
            return _json([{"ID": session}])
        self.invalidate(session)
        return _json(True)

    async def _block(self, query: dict[str, str], current: object) -> None:
        if "index" in query:
            with trio.move_on_after(parse_duration(query["wait"])):
                while current() <= int(query["index"]):
                    await self._written.wait()

    async def _get(self, key: str, query: dict[str, str]) -> httpx.Response:
        await self._block(query, lambda: self.kv[key]["ModifyIndex"] if key in self.kv else self._index)
        entry = self.kv.get(key)
        if entry is None:
            return httpx.Response(404, headers={"X-Consul-Index": str(self._index)})
        return _json([{**entry, "Value": base64.b64encode(entry["Value"]).decode()}], entry["ModifyIndex"])

    def _put(self, key: str, query: dict[str, str], value: bytes) -> httpx.Response:
        entry = self.kv.get(key)
        if session := query.get("acquire"):
            self.calls["acquire"] += 1
            if session not in self.sessions:
                return httpx.Response(500, text=f'rpc error: invalid session "{session}"')
            held = entry is not None and entry.get("Session") not in (None, session)
            if held or self.delayed.get(key, 0) > trio.current_time():
                return _json(False)
            entry = self.kv.setdefault(key, {"Key": key, "LockIndex": 0})
            entry["LockIndex"] += entry.get("Session") != session
            entry["Session"], entry["Flags"] = session, int(query["flags"])
        elif session := query.get("release"):
            if not entry or entry.get("Session") != session:
                return _json(False)
            del entry["Session"]
        self.write(value, key)
        return _json(True)


def _json(body: object, index: int | None = None) -> httpx.Response:
    headers = {} if index is None else {"X-Consul-Index": str(index)}
    return httpx.Response(200, json=body, headers=headers)
