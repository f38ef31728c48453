"""The flags about zones: which names a node has before Consul is asked, and what is refused."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from spegel_consul.commands.registry import _settings, registry
from spegel_consul.places import NOWHERE, Place
from spegel_consul.sidecar.settings import Settings

WITHOUT_CONSUL = ["--bootstrap-kind=static", "--static-bootstrap-peers=10.0.0.7:5001"]


def settings(*arguments: str) -> Settings:
    return _settings(registry.make_context("registry", list(arguments)).params)


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(registry, list(arguments))
    assert result.exit_code == 2
    return " ".join(result.output.split())


@pytest.fixture(autouse=True)
def no_nomad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOMAD_DC", raising=False)


def test_by_default_consul_is_asked() -> None:
    assert (settings().place, settings().place_from_consul) == (NOWHERE, True)
    assert not settings(*WITHOUT_CONSUL).place_from_consul
    assert not settings("--zone-from=off").place_from_consul


def test_nomad_names_the_datacenter_where_consul_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOMAD_DC", "dc1")
    assert settings(*WITHOUT_CONSUL).place == Place("dc1")
    assert settings(*WITHOUT_CONSUL, "--zone=a").place == Place("dc1", "a")
    assert settings("--zone-from=nomad", "--zone=dc2/a/r1").place == Place("dc2", "a", "r1")
    assert settings().place == NOWHERE, "Consul's name of the datacenter may be another one"
    assert settings(*WITHOUT_CONSUL, "--zone-from=off").place == NOWHERE


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--zone", "z" * 10240], "at most 64 are allowed"),
        (["--zone=zürich"], "use letters, digits and . _ : -"),
        (["--zone=a/b/c/d"], "give ZONE, DATACENTER/ZONE or DATACENTER/ZONE/RACK"),
        (["--zone-from=nomad"], "give --zone instead"),
        ([*WITHOUT_CONSUL, "--zone-from=consul"], "--zone-from=consul needs Consul"),
        (["--cross-zone=maybe"], "'prefer', 'fallback', 'never'"),
    ],
)
def test_a_refusal_says_what_to_do(arguments: list[str], why: str) -> None:
    assert why in refusal(*arguments)
