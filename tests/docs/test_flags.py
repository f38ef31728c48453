"""Each flag that a page names is one of a command, or of a program that is named here."""

from __future__ import annotations

import re

import click
import pytest
from lab.documents import PAGES, ROOT

from spegel_consul.cli import cli

FOREIGN = {
    "Docker, podman": "cap-add cap-drop containerd feature group-add init insecure-registry name network read-only "
    "registry-mirror restart rm security-opt ulimit user volume",
    "docker buildx": "driver driver-opt use registry-map",
    "ctr, nerdctl, crane, regctl, skopeo": "address hosts-dir insecure namespace plain-http platform src-tls-verify "
    "tls tls-verify",
    "bench, tests.sim, tests.fuzz": "lines minutes racks rounds silent-racks spegel trunk zones nodes seed",
    "py-spy": "output pid",
    "cosign, gh, sha256sum, pip": "bundle certificate-identity certificate-oidc-issuer check format ignore-missing "
    "no-deps repo require-hashes upgrade",
    "Spegel's, which settings.md compares": "debug-web-enabled http-bootstrap-addr",
    "all of a beginning": "tls-",
}  # fmt: skip
"""Flags of other programs, which pages name too."""


def flags() -> set[str]:
    """Those of all commands."""
    context = click.Context(cli)
    found = {name for parameter in cli.get_params(context) for name in parameter.opts}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        for parameter in command.get_params(click.Context(command)):
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found


@pytest.mark.parametrize("page", PAGES)
def test_each_flag_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
    foreign = {f"--{name}" for names in FOREIGN.values() for name in names.split()}
    assert named - flags() - foreign == set()
