"""Asks a tag's own registry whether the tag still stands for a digest: ``--tag-check=upstream``.

One HEAD of the manifest, without its bytes. The registry is the one of the image, over TLS that is verified, and the
setting needs a list of mirrored registries, because otherwise a client could make this node connect anywhere.

The client's own Authorization goes to that registry and nowhere else: redirects are not followed, and the server that
gives tokens is asked anonymously. So a private registry whose credentials the runtime does not show to a mirror can't
be checked. Runtimes show them only if the mirror asks for some.

Results, as the metric and the header of the answer name them:

* ``same``: the registry says the same digest;
* ``moved``: it says another one, or does not have the tag, or refuses the client's own credentials: the answer is 404,
  so the runtime asks the registry itself;
* ``denied``: it does not tell this node, which has no credentials; the tag is sent as without the check;
* ``unreachable``: it does not answer in time, or not with a digest; the tag is sent as without the check, because a
  mirror is for that time as well. Its registry is not asked again for a moment, so that pulls do not wait for it.

A new rule about the question to a registry belongs here.
"""

from __future__ import annotations

import enum
import json
import re
import ssl
import urllib.parse
from collections.abc import Callable

import httpx
import structlog
import trio

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.disk.threads import in_thread
from spegel_consul.http import bounded_client
from spegel_consul.http.answer_bounds import AnswerRefused
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import DigestInvalid
from spegel_consul.oci.media import INDEXES, MANIFESTS, MAX_MANIFEST_SIZE
from spegel_consul.oci.reference import Reference

log = structlog.get_logger(__name__)

WITHIN = 3.0
"""Seconds of one check, with a token and a wait for others."""

_SHARE = 0.8  # of WITHIN, for the registry itself, so that a wait in the queue does not look like a silent registry

MOST = 16
"""Checks at one registry at the same time."""

FRESH = 5.0
"""Seconds for which an answer of a registry is used again, because a crowd of pulls asks the same."""

DOWN = 30.0
"""Seconds without a question to a registry that could not be reached."""

_REMEMBERED = 1024
_CONNECT = 1.5  # seconds
_TOKEN_LIMIT = 64 << 10  # bytes of a token's answer
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,16384}\Z")
_TOKEN_LIFE = 60.0  # seconds, as the specification of tokens has it
_HOSTS = {"docker.io": "registry-1.docker.io"}
_PARAMETER = re.compile(r'([a-z]+)="([^"\\]*)"')


class TagCheck(enum.Enum):
    """The result of a check."""

    SAME = "same"
    MOVED = "moved"
    DENIED = "denied"
    UNREACHABLE = "unreachable"


class _Unreachable(Exception):
    """The registry gave no digest; the message says why."""


class _Down(_Unreachable):
    """The registry answers nobody now."""


@dataclass(frozen=True, slots=True)
class _Said:
    """The digest that a registry said; None: it does not have the tag, or denies it (``denied``).

    ``problem``: why it said nothing of this tag.
    """

    digest: Digest | None
    denied: bool = False
    problem: str = ""


def _real_client() -> httpx.AsyncClient:
    return bounded_client.client(verify=ssl.create_default_context())


class UpstreamTags:
    """Checks of tags at their registries. ``client`` makes the client of one check, in a thread."""

    def __init__(self, client: Callable[[], httpx.AsyncClient] = _real_client) -> None:
        self._client = client
        self._places: BoundedDict[str, trio.CapacityLimiter] = BoundedDict(_REMEMBERED)
        self._said: BoundedDict[tuple[str, str], tuple[_Said, float]] = BoundedDict(_REMEMBERED)
        self._down_until: BoundedDict[str, float] = BoundedDict(_REMEMBERED)
        self._tokens: BoundedDict[str, tuple[str, float]] = BoundedDict(_REMEMBERED)

    async def check(self, reference: Reference, digest: Digest, authorization: str | None) -> TagCheck:
        """Whether the tag's registry says ``digest``. ``authorization``: the client's own field value, if any.

        Takes at most :data:`WITHIN` seconds, and does not raise.
        """
        registry = reference.registry or ""
        try:
            with trio.fail_after(WITHIN):
                said = await self._ask(reference, registry, authorization)
        except (_Unreachable, AnswerRefused, httpx.HTTPError, httpx.InvalidURL, trio.TooSlowError, OSError) as exc:
            return _unreachable(reference, exc)
        except ValueError as exc:  # a field value that can't be sent
            return _unreachable(reference, exc)
        if said.denied:
            return TagCheck.MOVED if authorization is not None else TagCheck.DENIED
        return TagCheck.SAME if said.digest == digest else TagCheck.MOVED

    async def _ask(self, reference: Reference, registry: str, authorization: str | None) -> _Said:
        places = self._places.get(registry)
        if places is None:
            self._places[registry] = places = trio.CapacityLimiter(MOST)
        async with places:
            key, now = (str(reference), authorization or ""), trio.current_time()
            said, until = self._said.get(key, (_Said(None), 0.0))
            if until > now:
                return _answered(said)
            if self._down_until.get(registry, 0.0) > now:
                raise _Unreachable("the registry did not answer a moment ago")
            async with await in_thread(self._client) as client:
                try:
                    with trio.fail_after(_SHARE * WITHIN):
                        said = await self._head(client, reference, _HOSTS.get(registry, registry), authorization)
                except (_Down, trio.TooSlowError, httpx.TransportError, OSError):
                    # not for a wait in the queue, which says nothing of the registry
                    self._down_until[registry] = trio.current_time() + DOWN
                    raise
            now = trio.current_time()
            self._said.drop_oldest(lambda old: old[1] <= now)
            self._said[key] = said, now + FRESH
            return _answered(said)

    async def _head(
        self, client: httpx.AsyncClient, reference: Reference, host: str, authorization: str | None
    ) -> _Said:
        url = f"https://{host}/v2/{reference.repository}/manifests/{reference.tag}"
        token = authorization or self._token_of(reference)
        for _ in range(2):
            headers = {"Accept": ", ".join(sorted(INDEXES | MANIFESTS))}
            if token is not None:
                headers["Authorization"] = token
            answer = await bounded_client.receive(
                client, "HEAD", url, limit=MAX_MANIFEST_SIZE, within=WITHIN, connect=_CONNECT, headers=headers
            )
            if answer.status != 401 or authorization is not None:
                break
            new = await self._new_token(client, reference, host, answer.headers.get("www-authenticate", ""))
            if new is None:
                break
            token = new
        if answer.status == 200:
            try:
                return _Said(Digest(answer.headers.get("docker-content-digest", "")))
            except DigestInvalid:
                return _Said(None, problem=f"{host} does not say which digest the tag has")
        if answer.status == 404:
            return _Said(None)
        if answer.status in (401, 403):
            return _Said(None, denied=True)
        problem = f"{host} answered with status {answer.status}"
        if answer.status == 429 or answer.status >= 500:
            raise _Down(problem)
        return _Said(None, problem=problem)

    def _token_of(self, reference: Reference) -> str | None:
        token, until = self._tokens.get(_scope(reference), (None, 0.0))
        return token if until > trio.current_time() else None

    async def _new_token(
        self, client: httpx.AsyncClient, reference: Reference, host: str, challenge: str
    ) -> str | None:
        """Return an anonymous token of the server that the registry names, or None if there is none to be had."""
        scheme, _, rest = challenge.partition(" ")
        named = dict(_PARAMETER.findall(rest[:4096]))
        try:
            realm = urllib.parse.urlsplit(named.get("realm", ""))
        except ValueError:
            return None
        if scheme.lower() != "bearer" or realm.scheme != "https" or not _is_related(realm.hostname or "", host):
            return None
        query = {"service": named.get("service", ""), "scope": f"repository:{reference.repository}:pull"}
        answer = await bounded_client.receive(
            client,
            "GET",
            urllib.parse.urlunsplit(("https", realm.netloc.rpartition("@")[2], realm.path, "", "")),
            params={name: value for name, value in query.items() if value},
            limit=_TOKEN_LIMIT,
            within=WITHIN,
            connect=_CONNECT,
        )
        try:
            document = json.loads(answer.body) if answer.status == 200 else {}
            token, life = document.get("token") or document.get("access_token"), document.get("expires_in")
        except (ValueError, AttributeError, RecursionError):
            raise _Unreachable(f"{realm.hostname} did not answer with a token") from None
        if not isinstance(token, str) or not _TOKEN.match(token):
            return None
        life = life if isinstance(life, int) and 0 < life < 86400 else _TOKEN_LIFE
        now = trio.current_time()
        self._tokens.drop_oldest(lambda old: old[1] <= now)
        self._tokens[_scope(reference)] = f"Bearer {token}", now + life / 2
        return f"Bearer {token}"


def _answered(said: _Said) -> _Said:
    if said.problem:
        raise _Unreachable(said.problem)
    return said


def _unreachable(reference: Reference, exc: Exception) -> TagCheck:
    log.info("a tag could not be checked", image=str(reference), reason=str(exc) or type(exc).__name__)
    return TagCheck.UNREACHABLE


def _scope(reference: Reference) -> str:
    return f"{reference.registry}/{reference.repository}"


def _is_related(realm: str, host: str) -> bool:
    """Whether a server of tokens is the registry's own: the same host, or one of the same domain."""
    name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    if realm == name:
        return True
    labels = name.split(".")
    return len(labels) > 1 and not labels[-1].isdigit() and realm.split(".")[-2:] == labels[-2:]
