"""The flags for what a node sends to peers and takes from them: values that are refused say what to do."""

from __future__ import annotations

import click
import pytest
from lab.cli_commands import command

from spegel_consul.commands.registry import _settings

RATES = ("--upload-rate-limit", "--download-rate-limit")


def parsed(*arguments: str) -> dict[str, object]:
    with command("registry").make_context("registry", list(arguments)) as context:
        return context.params


@pytest.mark.parametrize("flag", RATES)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "with a unit, such as 512KiB/s"),
        ("0MiB/s", "not between 64KiB/s and 1TiB/s; leave the flag out"),
        ("-5MiB/s", "with a unit"),
        ("1000000", "with a unit"),
        ("1000000/s", "with a unit"),
        ("63KiB/s", "not between 64KiB/s and 1TiB/s"),
        ("1025GiB/s", "not between 64KiB/s and 1TiB/s"),
        ("999999999999999TiB/s", "not between 64KiB/s and 1TiB/s"),
        ("1.5MiB/s", "with a unit"),
        ("all", "with a unit"),
        ("200Mbit/s", "with a unit"),
        ("", "with a unit"),
    ],
)
def test_a_wrong_rate(flag: str, text: str, says: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        parsed(flag, text)
    assert says in caught.value.message
    assert caught.value.param is not None
    assert flag in caught.value.param.opts


@pytest.mark.parametrize("text", ["0", "-1", "100001", "many", "1.5", ""])
def test_a_wrong_number_of_uploads(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parsed("--max-upload", text)


def test_they_reach_the_settings() -> None:
    settings = _settings(
        parsed("--max-upload=7", "--upload-rate-limit=64KiB/s", "--download-rate-limit", "3 mb", "--bootstrap-kind=dns")
        | {"dns_bootstrap_domain": "example.com"}
    )
    assert (settings.max_upload, settings.upload_rate, settings.mirror.download_rate) == (7, 64 << 10, 3 << 20)
    settings = _settings(parsed())
    assert (settings.max_upload, settings.upload_rate, settings.mirror.download_rate) == (None, None, None)
