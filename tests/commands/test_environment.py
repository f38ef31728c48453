"""Each environment variable that the help names is read, and changes what its option is set to."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from lab.cli_commands import command, commands

from spegel_consul.commands import registry
from spegel_consul.commands.registry import _settings

REQUIRED = {
    "cleanup-wait": ["--probe-endpoint", "127.0.0.1:1"],
    "lookup": ["app:v1"],
    "pull": ["app:v1"],
    "preheat": ["app:v1"],
}
"""What a command can't do without."""

TRUE = ("1", "true", "TRUE", "yes", "on", "t", "y")
FALSE = ("0", "false", "FALSE", "no", "off", "f", "n")

EXAMPLES = {
    "host:port": "127.0.0.9:99",
    "duration": "7s",
    "size": "12KiB",
    "rate": "12MiB/s",
    "address": "10.9.9.9",
    "list": "one.example,two.example",
    "kind": "static,file",
    "ip[:port]": "10.9.9.9",
    "path": "/of/the/environment",
    "file": "/of/the/environment",
    "directory": "/of/the/environment",
    "text": "other",
    "integer range": "7",
    "place": "dc9/zone9",
    "age limit": ":latest$=30m",
}
"""By the type's name, a value that no option has by default."""


@dataclass(frozen=True, slots=True)
class Setting:
    """An option of a command."""

    command: click.Command
    option: click.Option

    def __str__(self) -> str:
        return f"{self.command.name} {self.option.opts[0]}"

    def parsed(self, *arguments: str) -> Any:
        """What the option is set to, with what is in the environment."""
        name = self.command.name or ""
        words = [word for word in REQUIRED.get(name, []) if not self.option.required]
        return self.command.make_context(name, [*words, *arguments]).params[self.option.name]


def settings() -> list[Setting]:
    """All options that have a variable."""
    found = [
        Setting(each, option)
        for each in commands()
        for option in each.params
        if isinstance(option, click.Option) and option.envvar is not None
    ]
    assert len(found) >= 60
    return found


def is_boolean(option: click.Option) -> bool:
    return isinstance(option.type, click.types.BoolParamType)


def values(option: click.Option) -> list[str]:
    """Texts of which each sets the option to something else than its default."""
    if isinstance(option.type, click.Choice):
        default = option.default if option.multiple else [option.default]
        return [choice for choice in option.type.choices if choice not in default]
    return [EXAMPLES[option.type.name]]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this process's own environment."""
    for setting in settings():
        monkeypatch.delenv(str(setting.option.envvar), raising=False)


@pytest.mark.parametrize("setting", settings(), ids=str)
def test_the_name_is_one_that_a_shell_can_set(setting: Setting) -> None:
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*", str(setting.option.envvar))


def test_no_two_options_of_a_command_share_a_variable() -> None:
    for each in commands():
        names = [str(setting.option.envvar) for setting in settings() if setting.command is each]
        assert len(names) == len(set(names)), each.name


@pytest.mark.parametrize("setting", [each for each in settings() if not is_boolean(each.option)], ids=str)
def test_a_value_is_taken_as_the_option_takes_it(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    default = None if setting.option.required else setting.parsed()
    for text in values(setting.option):
        by_option = setting.parsed(setting.option.opts[0], text)
        monkeypatch.setenv(str(setting.option.envvar), text)
        assert setting.parsed() == by_option
        assert setting.parsed() != default
        monkeypatch.delenv(str(setting.option.envvar))


@pytest.mark.parametrize("setting", [each for each in settings() if each.option.multiple], ids=str)
def test_several_values_stand_apart_by_spaces(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *more = values(setting.option)
    second = more[0] if more else first
    monkeypatch.setenv(str(setting.option.envvar), f"{first} {second}")
    assert setting.parsed() == setting.parsed(setting.option.opts[0], first, setting.option.opts[0], second)
    assert len(setting.parsed()) == 2


@pytest.mark.parametrize("setting", [each for each in settings() if is_boolean(each.option)], ids=str)
def test_yes_and_no_are_taken_and_nothing_else(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, meant in [*((text, True) for text in TRUE), *((text, False) for text in FALSE)]:
        monkeypatch.setenv(str(setting.option.envvar), text)
        assert setting.parsed() is meant, text
    for text in ("maybe", "2", "--", str(setting.option.envvar)):
        monkeypatch.setenv(str(setting.option.envvar), text)
        with pytest.raises(click.BadParameter):
            setting.parsed()


def test_a_flag_of_the_command_line_outweighs_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    verify = next(each for each in settings() if each.option.envvar == "TLS_VERIFY_CLIENTS")
    monkeypatch.setenv("TLS_VERIFY_CLIENTS", "true")
    assert verify.parsed("--no-tls-verify-clients") is False
    monkeypatch.setenv("TLS_VERIFY_CLIENTS", "false")
    assert verify.parsed("--tls-verify-clients") is True


def test_clients_are_verified_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "CERT_FILE": "a.pem",
        "KEY_FILE": "a.key",
        "CA_FILE": "ca.pem",
        "VERIFY_CLIENTS": "true",
    }.items():
        monkeypatch.setenv(f"TLS_{name}", value)
    given = command("registry").make_context("registry", []).params
    tls = _settings(given).tls
    assert tls is not None
    assert tls.verify_clients


@pytest.mark.parametrize("each", commands(), ids=lambda each: str(each.name))
def test_each_option_is_used(each: click.Command) -> None:
    assert each.callback is not None
    named = inspect.signature(inspect.unwrap(each.callback)).parameters
    folder = Path(inspect.getfile(registry)).parent
    source = "".join(path.read_text() for path in sorted(folder.glob("*.py")))
    for option in each.params:
        assert option.name in named or f'given["{option.name}"]' in source, option.name
