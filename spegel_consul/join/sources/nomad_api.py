"""``NomadClient``: variables, their locks and services of Nomad's HTTP API, on Trio.

A task reaches Nomad without any configured address, through the socket of the task API.  Nomad puts the socket into the
secrets directory of the task, and since 1.10 names it in NOMAD_UNIX_ADDR; the token of the workload identity is in
NOMAD_TOKEN.  NOMAD_ADDR replaces that socket, because an operator sets it on purpose.  The other variables are those of
the ``nomad`` command.

Sources: Nomad's command/agent/variable_endpoint.go, nomad/variables_endpoint.go, api/api.go.

A rule that holds for every request to Nomad belongs here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import trio

from spegel_consul.consul.api.token import TokenSource
from spegel_consul.consul.api.transport import root_cause
from spegel_consul.election.lock_store import LockError
from spegel_consul.http import bounded_client
from spegel_consul.http.answer_bounds import AnswerRefused
from spegel_consul.http.client_tls import ClientTls
from spegel_consul.http.followed_context import FollowedContext
from spegel_consul.join.peer_formats import one_line
from spegel_consul.join.polled import SourceError
from spegel_consul.lean.dataclass import dataclass

DEFAULT_ADDRESS = "http://127.0.0.1:4646"
_CONNECT_WITHIN = 3.0
_CALL_WITHIN = 10.0
MAX_BYTES = 4 << 20  # of an answer; a variable has at most 64 KiB, an instance of a service about 500 bytes


class NomadError(SourceError, LockError):
    """Nomad could not be asked, or refused.

    ``status`` is the HTTP status, 0 without an answer; ``index`` is the one of an answer that says "not found".
    """

    def __init__(self, message: str, status: int = 0, index: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.index = index


@dataclass(frozen=True, slots=True)
class NomadSettings:
    """The address, credentials and TLS files of the Nomad agent."""

    address: str = DEFAULT_ADDRESS
    uds: str | None = None
    """Path of a unix socket; then ``address`` is used only for the Host header."""
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    region: str | None = None
    namespace: str = "default"
    cafile: str | None = None
    capath: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    tls_server_name: str | None = None
    verify: bool = True

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> NomadSettings:
        """From ``NOMAD_*``; empty means unset. Raises ValueError that names the variable that can't be used."""
        variable = "NOMAD_ADDR" if env.get("NOMAD_ADDR") else "NOMAD_UNIX_ADDR"
        secrets = env.get("NOMAD_SECRETS_DIR")
        address, uds = env.get(variable) or _task_api(env) or DEFAULT_ADDRESS, None
        parts = urlsplit(address)
        if parts.scheme == "unix":
            address, uds = "http://localhost", parts.path
            if not uds or parts.netloc:
                raise ValueError(f"{variable}: a unix socket needs an absolute path (unix:///secrets/api.sock)")
        elif parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{variable}: {address!r} is not a URL: expected something like {DEFAULT_ADDRESS}")
        token_file = str(Path(secrets) / "nomad_token") if secrets else None
        settings = cls(
            address.rstrip("/"),
            uds,
            token=env.get("NOMAD_TOKEN") or None,
            token_file=token_file,
            region=env.get("NOMAD_REGION") or None,
            namespace=env.get("NOMAD_NAMESPACE") or "default",
            cafile=env.get("NOMAD_CACERT") or None,
            capath=env.get("NOMAD_CAPATH") or None,
            client_cert=env.get("NOMAD_CLIENT_CERT") or None,
            client_key=env.get("NOMAD_CLIENT_KEY") or None,
            tls_server_name=env.get("NOMAD_TLS_SERVER_NAME") or None,
            verify=env.get("NOMAD_SKIP_VERIFY", "").lower() not in ("1", "t", "true"),
        )
        settings.tls.check()
        return settings

    @property
    def tls(self) -> ClientTls:
        """The TLS files, which are not opened yet."""
        return ClientTls("NOMAD", self.cafile, self.capath, self.client_cert, self.client_key, self.verify)


class NomadClient(AbstractAsyncContextManager["NomadClient"]):
    """Calls to the agent of ``settings``; all methods raise NomadError. ``transport`` replaces the network."""

    def __init__(self, settings: NomadSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._settings = settings
        self._tokens = TokenSource(settings.token, settings.token_file, "NOMAD_SECRETS_DIR")
        self._where = settings.uds or settings.address
        self._extensions = {"sni_hostname": settings.tls_server_name} if settings.tls_server_name else {}
        self._tls = FollowedContext(settings.tls) if settings.address.startswith("https") else None
        self._client = bounded_client.client(
            transport=transport
            or httpx.AsyncHTTPTransport(
                verify=self._tls.context if self._tls else False,
                uds=settings.uds,
                trust_env=False,
            ),
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.move_on_after(1, shield=True):
            await self._client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
        wait: float = 0.0,
    ) -> tuple[int, Any]:
        """The index and the document of an answer; the server may hold the answer for ``wait`` seconds."""
        token = await self._tokens.current()
        query = {"namespace": self._settings.namespace, **(params or {})}
        if self._settings.region:
            query["region"] = self._settings.region
        budget = wait + wait / 16 + _CALL_WITHIN
        if self._tls is not None:
            await self._tls.look(trio.current_time())
        try:
            answer = await bounded_client.receive(
                self._client,
                method,
                self._settings.address + path,
                limit=MAX_BYTES,
                within=budget,
                connect=_CONNECT_WITHIN,
                params=query,
                content=b"" if body is None else json.dumps(body).encode(),
                headers={"X-Nomad-Token": token} if token else {},
                extensions=self._extensions,
            )
        except (httpx.TimeoutException, trio.TooSlowError):
            raise NomadError(f"{self._where}: no answer within {budget:g} s") from None
        except AnswerRefused as why:
            raise NomadError(f"{self._where}: {why}: not an answer of Nomad's") from None
        except Exception as why:  # because a closed client, or a fault of a library, must not end a task
            raise NomadError(f"{self._where}: {one_line(root_cause(why))}") from None
        told = answer.headers.get("X-Nomad-Index", "")
        index = int(told) if told.isascii() and told.isdigit() else 0
        document, fault = None, ""
        try:
            document = json.loads(answer.body) if answer.body else None
        except Exception as why:  # because a decoder of untrusted bytes may raise anything, even MemoryError
            fault = f"not an answer of Nomad's ({type(why).__name__})"
        if answer.status != 200:
            says = f"{method} {path}: {answer.status} {one_line(answer.text[:400])}".rstrip()
            if answer.status in (401, 403) and self._tokens.problem is not None:
                says += f" ({self._tokens.problem})"
            raise NomadError(says, answer.status, index)
        if fault:
            raise NomadError(f"{method} {path}: {fault}")
        return index, document


def _task_api(env: Mapping[str, str]) -> str | None:
    """The task API of a Nomad that does not name it, if this task has a token: it answers nobody else."""
    secrets = Path(env.get("NOMAD_SECRETS_DIR") or "/nonexistent")
    with suppress(OSError):  # the directory may be another user's
        if (env.get("NOMAD_TOKEN") or (secrets / "nomad_token").exists()) and (secrets / "api.sock").is_socket():
            return f"unix://{secrets}/api.sock"
    return None


def variable_path(path: str) -> str:
    """The path of a variable in Nomad's API. Raises ValueError for a path that Nomad does not allow."""
    bare = path.strip("/ ")
    if not bare or len(bare) > 128 or any(not (char.isalnum() or char in "-_~/") for char in bare):
        raise ValueError(f"{path!r} is not the path of a Nomad variable (letters, digits, -, _, ~ and /)")
    return f"/v1/var/{quote(bare)}"
