"""``ConsulClient``: typed, awaitable, cancellable calls to one Consul agent.

Requests that the library makes well use the library (KV, session.destroy, agent, status).  The library can't bind a
session to service checks or give it a TTL below 10 s, can't register a service with its own check id or with
replace-existing-checks, and can't ask for stale health.  Those requests are JSON of this module on the same transport.
Each answer is checked for its type here, so that no untyped value leaves this module.

A new request to Consul belongs here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import field
from types import TracebackType
from typing import Any

import httpx
import trio

from spegel_consul.consul.api.consul_errors import ConsulError, NotFound, UnexpectedAnswer
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.api.duration import format_duration
from spegel_consul.consul.api.transport import TrioConsul, TrioHTTPClient, answered_json, answered_ok
from spegel_consul.lean.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class KVEntry:
    """A key. ``session`` is the holder of its lock, None if the lock is free; ``modify_index`` is a Raft index."""

    key: str
    value: bytes
    session: str | None
    modify_index: int


@dataclass(frozen=True, slots=True)
class AgentService:
    """A service of the local agent. ``weights``: of an instance that passes, and of one that warns."""

    id: str
    name: str
    address: str
    port: int
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)
    weights: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True)
class AgentNode:
    """The node of an agent: its name, its datacenter and its metadata."""

    name: str
    datacenter: str
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A network coordinate; all numbers are seconds."""

    vector: tuple[float, ...]
    height: float
    adjustment: float


@dataclass(frozen=True, slots=True)
class HealthyService:
    """An instance of a service in the catalog. ``address`` is the node's address if the service has none."""

    id: str
    name: str
    node: str
    address: str
    port: int
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate of a service with its chain, and its key, in PEM form; the times are in RFC 3339."""

    serial: str
    chain: str
    key: str = field(repr=False)
    valid_after: str
    valid_before: str


@dataclass(frozen=True, slots=True)
class Roots:
    """The authorities of the cluster in PEM form: the active one, and those before it that are still trusted."""

    trust_domain: str
    certificates: tuple[str, ...]


class ConsulClient(AbstractAsyncContextManager["ConsulClient"]):
    """Calls to the agent of ``settings``. Use as ``async with``; all methods raise ConsulError.

    ``transport`` replaces the network in tests. The constructor raises ValueError for TLS files that can't be used. An
    agent that is named by a host name costs one worker thread per look-up; addresses and sockets cost none.
    """

    def __init__(self, settings: ConsulSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.settings = settings
        self._http = TrioHTTPClient(settings, transport)
        self._api = TrioConsul(self._http)
        self.renewals = {"ok": 0, "failed": 0}
        """Numbers of session renewals that succeeded and failed."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.move_on_after(1, shield=True):
            await self._http.close()

    @property
    def answered_at(self) -> float | None:
        """Trio time of the last request that succeeded; None before the first one."""
        return self._http.answered_at

    async def token(self) -> str | None:
        """The ACL token of the next request; it changes with the token file."""
        return await self._http.tokens.current()

    # -- keys and locks

    async def kv_get(
        self, key: str, index: int = 0, wait: float = 60.0, *, consistent: bool = False
    ) -> tuple[int, KVEntry | None]:
        """The index to wait on, and the key; with ``index`` returns at a change or after ``wait`` seconds.

        ``consistent`` costs the servers a round of messages; a server that has not caught up does not answer then.
        """
        raw, item = await self._api.kv.get(
            key,
            index=index or None,
            wait=format_duration(wait),
            consistency="consistent" if consistent else None,
        )
        if item is None:
            return _index(raw), None
        with _Shape(f"key {key}"):
            entry = KVEntry(
                key=str(item["Key"]),
                value=item.get("Value") or b"",
                session=item.get("Session") or None,
                modify_index=int(item["ModifyIndex"]),
            )
        return _index(raw), entry

    async def kv_acquire(self, key: str, session: str, value: bytes, flags: int = 0) -> bool:
        """Lock ``key`` for ``session`` and write it; False if it is held or in lock-delay. Raises InvalidSession."""
        return _true(await self._api.kv.put(key, value, acquire=session, flags=flags), "acquire")

    async def kv_release(self, key: str, session: str, value: bytes, flags: int = 0) -> bool:
        """Write ``key`` and release its lock, without a lock-delay; False if ``session`` does not hold it."""
        return _true(await self._api.kv.put(key, value, release=session, flags=flags), "release")

    # -- sessions

    async def session_create(
        self,
        name: str,
        *,
        ttl: float,
        lock_delay: float,
        behavior: str = "release",
        service_checks: Sequence[str] = (),
    ) -> str:
        """A new session's id. It ends with its TTL (seconds), the agent's node or one of ``service_checks`` (ids).

        Raises InvalidSessionTTL, CheckNotPassing.
        """
        body: dict[str, object] = {
            "Name": name,
            "TTL": format_duration(ttl),
            "LockDelay": format_duration(lock_delay) if lock_delay else "0s",
            "Behavior": behavior,
        }
        if service_checks:
            body["NodeChecks"] = ["serfHealth"]  # the default, which the list of service checks would replace
            body["ServiceChecks"] = [{"ID": check} for check in service_checks]
        answer = await self._http.request("PUT", answered_json, "/v1/session/create", data=json.dumps(body))
        with _Shape("session"):
            return str(answer["ID"])

    async def session_renew(self, session: str, within: float | None = None) -> None:
        """Renew the session for a TTL, in ``within`` seconds. Raises NotFound; Consul's text names the session."""
        try:
            answer = await self._http.request("PUT", answered_json, f"/v1/session/renew/{session}", within=within)
            with _Shape("session"):
                if answer[0]["ID"] != session:
                    raise ValueError(answer)
        except ConsulError:
            self.renewals["failed"] += 1
            raise
        self.renewals["ok"] += 1

    async def session_destroy(self, session: str) -> None:
        """End the session; a lock that it holds goes into lock-delay. An unknown session is no error."""
        await self._api.session.destroy(session)

    # -- this agent

    async def agent_services(self) -> dict[str, AgentService]:
        """The services registered at this agent, by id."""
        answer = await self._api.agent.services()
        with _Shape("services"):
            return {
                str(key): AgentService(
                    id=str(item["ID"]),
                    name=str(item["Service"]),
                    address=str(item.get("Address") or ""),
                    port=int(item.get("Port") or 0),
                    tags=tuple(item.get("Tags") or ()),
                    meta=dict(item.get("Meta") or {}),
                    weights=_weights(item.get("Weights") or {}),
                )
                for key, item in answer.items()
            }

    async def agent_self(self) -> AgentNode:
        """The node of this agent; needs ``agent:read``."""
        answer = await self._http.request("GET", answered_json, "/v1/agent/self")
        with _Shape("agent"):
            config = answer["Config"]
            meta = {str(key): str(value) for key, value in (answer.get("Meta") or {}).items()}
            return AgentNode(str(config["NodeName"]), str(config["Datacenter"]), meta)

    async def register_service(self, definition: Mapping[str, object]) -> None:
        """Register a service with this agent, in place of the service and checks with the same id."""
        await self._http.request(
            "PUT",
            answered_ok,
            "/v1/agent/service/register",
            params=[("replace-existing-checks", "true")],
            data=json.dumps(definition),
        )

    async def deregister_service(self, service_id: str) -> None:
        """Remove a service from this agent; an unknown id is no error."""
        path = f"/v1/agent/service/deregister/{service_id}"
        with suppress(NotFound):
            await self._http.request("PUT", answered_ok, path)

    async def check_pass(self, check_id: str, within: float | None = None) -> None:
        """Report that a TTL check passes. Raises ServerError or NotFound if the agent has no such check."""
        await self._http.request("PUT", answered_ok, f"/v1/agent/check/pass/{check_id}", within=within)

    # -- certificates (Consul calls the feature Connect)

    async def connect_leaf(self, service: str, index: int = 0, wait: float = 60.0) -> tuple[int, Leaf]:
        """The index to wait on, and a certificate for ``service``; needs ``service:write`` on that name.

        The agent makes the key, and renews the certificate only while it is asked with ``index``. Raises
        ConnectDisabled.
        """
        raw, item = await self._connect(f"/v1/agent/connect/ca/leaf/{service}", index, wait)
        with _Shape("leaf"):
            names = ("SerialNumber", "CertPEM", "PrivateKeyPEM", "ValidAfter", "ValidBefore")
            return raw, Leaf(*(str(item[name]) for name in names))

    async def connect_roots(self, index: int = 0, wait: float = 60.0) -> tuple[int, Roots]:
        """The index to wait on, and the authorities; needs no right. Raises ConnectDisabled."""
        raw, item = await self._connect("/v1/agent/connect/ca/roots", index, wait)
        with _Shape("roots"):
            return raw, Roots(str(item["TrustDomain"]), tuple(str(root["RootCert"]) for root in item["Roots"] or ()))

    async def _connect(self, path: str, index: int, wait: float) -> tuple[int, Any]:
        params = [("index", index), ("wait", format_duration(wait))] if index else []
        answer: tuple[int, Any] = await self._http.request("GET", _indexed, path, params=params)
        return answer

    # -- the catalog and the servers

    async def health_service(
        self,
        name: str,
        index: int = 0,
        wait: float = 60.0,
        *,
        near: str | None = None,
        stale: bool = False,
    ) -> tuple[int, tuple[HealthyService, ...]]:
        """The index to wait on, and the passing instances of a service; empty without the right to read."""
        params: list[tuple[str, Any]] = [("passing", "1")]
        if index:
            params += [("index", index), ("wait", format_duration(wait))]
        if stale:
            params.append(("stale", "1"))
        if near:
            params.append(("near", near))
        found: tuple[int, tuple[HealthyService, ...]] = await self._http.request(
            "GET", _instances, f"/v1/health/service/{name}", params=params
        )
        return found

    async def coordinates(self) -> dict[str, Coordinate]:
        """The network coordinates of the datacenter's nodes, by their names; needs ``node:read``."""
        found: dict[str, Coordinate] = await self._http.request(
            "GET", _coordinates, "/v1/coordinate/nodes", params=[("stale", "1")]
        )
        return found

    async def status_leader(self, within: float | None = None) -> str:
        """``ip:port`` of the servers' Raft leader, empty while they have none; waits at most ``within`` seconds."""
        answer = await self._http.request("GET", answered_json, "/v1/status/leader", within=within)
        if not isinstance(answer, str):
            raise UnexpectedAnswer(f"the Raft leader's address is {answer!r}")
        return answer


class _Shape:
    """Converts exceptions of indexing into an answer of the wrong shape to UnexpectedAnswer."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # any exception, because in untrusted JSON a number may be infinite and a list nested without end
        if isinstance(error, Exception) and not isinstance(error, ConsulError):
            raise UnexpectedAnswer(f"{self._what}: not an answer of Consul's") from error


def _instances(response: Any) -> tuple[int, tuple[HealthyService, ...]]:
    return _index(response.headers.get("X-Consul-Index")), tuple(_instance(row) for row in answered_json(response))


def _coordinates(response: Any) -> dict[str, Coordinate]:
    return {
        str(row["Node"]): Coordinate(
            tuple(map(float, coord["Vec"])), float(coord["Height"]), float(coord["Adjustment"])
        )
        for row in answered_json(response)
        for coord in [row["Coord"]]
    }


def _indexed(response: Any) -> tuple[int, Any]:
    return _index(response.headers.get("X-Consul-Index")), answered_json(response)


def _index(raw: object) -> int:
    """The index in a header; 0, which asks for an answer at once, if the header is missing or no number."""
    try:
        return max(0, int(str(raw)))
    except ValueError:
        return 0


def _true(answer: object, what: str) -> bool:
    if not isinstance(answer, bool):  # a true value is not enough, because the library turns a 404 into a tuple
        raise UnexpectedAnswer(f"{what}: {answer!r} is neither true nor false")
    return answer


def _weights(given: Mapping[str, Any]) -> tuple[int, int]:
    return int(given.get("Passing", 1)), int(given.get("Warning", 1))


def _instance(row: Mapping[str, Any]) -> HealthyService:
    service, node = row["Service"], row["Node"]
    return HealthyService(
        id=str(service["ID"]),
        name=str(service["Service"]),
        node=str(node["Node"]),
        address=str(service.get("Address") or node["Address"]),
        port=int(service.get("Port") or 0),
        tags=tuple(service.get("Tags") or ()),
        meta={str(key): str(value) for key, value in (service.get("Meta") or {}).items()},
    )
