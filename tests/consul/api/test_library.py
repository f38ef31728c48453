"""The known faults of python-consul2 0.1.5, one by one, and the results of our callers in spite of them."""

from __future__ import annotations

import json
import warnings

import httpx
import pytest
import trio
import trio.testing
from consul.base import CB, ConsulException, Response

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import (
    ConsulError,
    ConsulTimeout,
    ConsulUnavailable,
    InvalidSession,
    InvalidSessionTTL,
    NoClusterLeader,
    NotFound,
    RateLimited,
    UnexpectedAnswer,
)
from spegel_consul.consul.api.consul_settings import ConsulSettings


class Server:
    """Answers everything with one answer and keeps what was asked."""

    def __init__(self, answer: httpx.Response, **settings: object) -> None:
        self.requests: list[httpx.Request] = []
        self._answer = answer
        self.client = ConsulClient(ConsulSettings(**settings), transport=httpx.MockTransport(self._handle))

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self._answer

    @property
    def body(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.requests[-1].content)
        return found


async def test_1_a_404_is_no_lock() -> None:
    """The library returns ``(None, None)``, which is true."""
    for answer in (httpx.Response(404), httpx.Response(404, headers={"X-Consul-Index": "7"})):
        with pytest.raises((NotFound, UnexpectedAnswer)):
            await Server(answer).client.kv_acquire("k", "s", b"")


async def test_2_a_404_is_no_success_and_no_failure() -> None:
    """The library makes it False, which callers of register don't look at."""
    server = Server(httpx.Response(404, text="page not found"))
    for call in (
        server.client.register_service({}),
        server.client.check_pass("c"),
        server.client.session_renew("s"),
        server.client.session_destroy("s"),
    ):
        with pytest.raises(NotFound):
            await call
    await server.client.deregister_service("unknown")  # newer agents say 404 here: gone is gone


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, json=[]),  # no index: KeyError
        httpx.Response(200, text="<html>", headers={"X-Consul-Index": "1"}),  # JSONDecodeError
        httpx.Response(200, text="", headers={"X-Consul-Index": "1"}),
    ],
    ids=["no index", "html", "empty"],
)
async def test_3_odd_answers_raise_our_errors(answer: httpx.Response) -> None:
    with pytest.raises(UnexpectedAnswer):
        await Server(answer).client.kv_get("k")


async def test_4_a_value_is_written_as_it_is() -> None:
    """An inverted assertion lets the library store ``a=b`` for ``{'a': 'b'}``; ours are bytes, whatever is in them."""
    server = Server(httpx.Response(200, json=True))
    value = bytes(range(256))
    await server.client.kv_acquire("k", "s", value)
    assert server.requests[0].content == value


async def test_5_a_service_may_have_several_checks_and_weights() -> None:
    server = Server(httpx.Response(200))
    definition = {"ID": "a", "Checks": [{"TTL": "3s"}, {"TCP": "1"}], "Weights": {"Passing": 10, "Warning": 1}}
    await server.client.register_service(definition)
    assert server.body == definition
    assert server.requests[0].url.params["replace-existing-checks"] == "true"


async def test_6_a_session_may_be_short_and_bound_to_service_checks() -> None:
    """The library asserts a TTL of 10 s or more, and knows neither ServiceChecks nor parts of a second."""
    server = Server(httpx.Response(200, json={"ID": "s"}))
    await server.client.session_create("n", ttl=2.5, lock_delay=0.001, service_checks=("c",))
    assert (server.body["TTL"], server.body["LockDelay"]) == ("2500ms", "1ms")
    assert (server.body["NodeChecks"], server.body["ServiceChecks"]) == (["serfHealth"], [{"ID": "c"}])


async def test_7_health_may_be_stale() -> None:
    server = Server(httpx.Response(200, json=[], headers={"X-Consul-Index": "1"}))
    await server.client.health_service("spegel", stale=True, near="_agent")
    assert dict(server.requests[0].url.params) == {"passing": "1", "stale": "1", "near": "_agent"}


async def test_8_a_ttl_check_may_deregister_its_service() -> None:
    server = Server(httpx.Response(200))
    check = {"TTL": "3s", "DeregisterCriticalServiceAfter": "5m"}
    await server.client.register_service({"ID": "a", "Checks": [check]})
    assert server.body["Checks"] == [check]


async def test_9_parameters_are_sent_once() -> None:
    server = Server(httpx.Response(200, json=[{"ID": "s"}]), namespace="team")
    await server.client.session_renew("s")
    assert server.requests[0].url.query == b"ns=team"


async def test_10_a_silent_agent_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async def silent(request: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError

    client = ConsulClient(ConsulSettings(), transport=httpx.MockTransport(silent))
    for call in (client.kv_get("k"), client.agent_services(), client.kv_get("k", 7, 60)):
        with pytest.raises(ConsulTimeout):
            await call


async def test_10_the_http_clients_errors_stay_inside() -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.RemoteProtocolError("what", request=request)

    with pytest.raises(ConsulUnavailable):
        await ConsulClient(ConsulSettings(), transport=httpx.MockTransport(broken)).agent_services()


async def test_11_every_request_carries_the_token() -> None:
    answers = (
        httpx.Response(200, json={"ID": "s"}, headers={"X-Consul-Index": "1"}),
        httpx.Response(200, json="1:2"),
    )
    for answer in answers:
        server = Server(answer, token="secret")
        for call in (
            server.client.status_leader(),
            server.client.agent_services(),
            server.client.session_create("n", ttl=10, lock_delay=1),
            server.client.kv_get("k"),
            server.client.health_service("spegel"),
        ):
            try:
                await call
            except ConsulError:
                pass  # not every call takes this answer; here it is about the question
        assert len(server.requests) == 5
        assert {request.headers.get("X-Consul-Token") for request in server.requests} == {"secret"}


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (429, "", RateLimited),
        (500, "No cluster leader", NoClusterLeader),
        (500, 'invalid session "x"', InvalidSession),
        (500, "Invalid Session TTL '1', must be between [10s=24h0m0s]", InvalidSessionTTL),
    ],
)
async def test_12_errors_are_told_apart(status: int, text: str, kind: type[ConsulError]) -> None:
    with pytest.raises(kind):
        await Server(httpx.Response(status, text=text)).client.kv_acquire("k", "s", b"")


def test_13_nothing_warns() -> None:
    """The library warns of an endpoint that we never call, each time a client is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConsulClient(ConsulSettings())


async def test_the_library_does_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """There it beats the arguments."""
    for name, value in {"ADDR": "http://[::9]:1", "TOKEN": "another", "SSL": "true", "SSL_VERIFY": "maybe"}.items():
        monkeypatch.setenv(f"CONSUL_HTTP_{name}", value)
    server = Server(httpx.Response(200, json="1:2"), host="fd00::1", token="mine", path_prefix="/gate")
    await server.client.status_leader()
    [request] = server.requests
    assert str(request.url) == "http://[fd00::1]:8500/gate/v1/status/leader"
    assert request.headers["X-Consul-Token"] == "mine"


def test_its_exceptions_are_one_family() -> None:
    """What is caught around callbacks has to be the base of all that they raise."""
    response = Response(500, {}, "text", b"text")
    with pytest.raises(ConsulException):
        CB.json()(response)
