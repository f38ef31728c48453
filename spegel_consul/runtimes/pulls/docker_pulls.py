"""Docker as a runtime that pulls: its API over its socket (``POST /images/create``, a line of JSON for each step).

The progress of a layer is in lines with its id, so the bytes of a pull are the sum of the last lines of all layers. An
error after the head is a line too. The line that ends a pull is followed by the end of the answer; an answer that ends
without an error is a pull that succeeded.

A new fact about these lines belongs here; facts about a Docker belong to :mod:`spegel_consul.runtimes.docker`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import trio

from spegel_consul.error_words import in_words
from spegel_consul.http import bounded_client
from spegel_consul.http.bounded_lines import TooLong, read_lines
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.reference import Reference
from spegel_consul.runtimes.pulls import CantPull, Received

_LONGEST_LINE = 256 << 10
_CONNECT_TIMEOUT = 5.0
_DOWNLOADING = "Downloading"
_ABSENT = ("not found", "manifest unknown")


@dataclass(frozen=True, slots=True)
class DockerPulls:
    """Docker at ``socket``."""

    socket: Path

    @property
    def name(self) -> str:
        return "docker"

    async def pull(self, reference: Reference, within: float, received: Received) -> None:
        """As the protocol says."""
        name = f"{reference.registry}/{reference.repository}"
        query = {"fromImage": name, "tag": reference.tag or str(reference.digest)}
        try:
            with trio.fail_after(within):
                async with (
                    bounded_client.client(
                        transport=httpx.AsyncHTTPTransport(uds=str(self.socket), verify=False, trust_env=False)
                    ) as client,
                    client.stream(
                        "POST",
                        "http://docker/images/create",
                        params=query,
                        timeout=httpx.Timeout(within, connect=_CONNECT_TIMEOUT),
                    ) as answer,
                ):
                    await self._follow(answer, received)
        except trio.TooSlowError:
            raise CantPull(f"Docker has not pulled the image within {within:g} s") from None
        except (httpx.HTTPError, TooLong) as exc:
            raise CantPull(f"Docker at {self.socket} broke off: {in_words(exc)}") from None

    async def _follow(self, answer: httpx.Response, received: Received) -> None:
        layers: dict[str, int] = {}

        def take(line: bytes) -> bool:
            said = _document(line)
            message = said.get("error") or said.get("message")
            if message or answer.status_code != 200:
                text = str(message or f"status {answer.status_code}")
                missing = answer.status_code == 404 or any(each in text for each in _ABSENT)
                raise CantPull(f"Docker: {text}", missing=missing)
            if _grew(layers, said):
                received(sum(layers.values()))
            return True

        await read_lines(answer, _LONGEST_LINE, take)
        if answer.status_code != 200:
            raise CantPull(f"Docker at {self.socket} answered with status {answer.status_code}")


def _grew(layers: dict[str, int], said: dict[str, Any]) -> bool:
    """Note the progress of a layer; False if the line has none."""
    layer, detail = said.get("id"), said.get("progressDetail")
    if said.get("status") != _DOWNLOADING or not isinstance(layer, str) or not isinstance(detail, dict):
        return False
    current = detail.get("current")
    if not isinstance(current, int) or not 0 <= current < 1 << 50:
        return False
    layers[layer] = max(current, layers.get(layer, 0))
    return True


def _document(line: bytes) -> dict[str, Any]:
    """The object in a line; empty if there is none, because only an error or the end of the answer counts."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
