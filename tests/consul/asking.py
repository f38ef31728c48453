"""Requests that tests make with the product's client and the product itself never makes."""

from __future__ import annotations

from typing import Any

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.transport import answered_json


async def put_key(client: ConsulClient, key: str, value: bytes) -> bool:
    """Write ``key`` without a lock, as an operator does."""
    written: bool = await client._http.request("PUT", answered_json, f"/v1/kv/{key}", data=value)
    return written


async def statuses(client: ConsulClient, service: str) -> list[set[str]]:
    """The statuses of each instance's checks, of failing instances too."""
    found: list[dict[str, Any]] = await client._http.request("GET", answered_json, f"/v1/health/service/{service}")
    return [{check["Status"] for check in instance["Checks"]} for instance in found]
