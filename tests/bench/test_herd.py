"""Values of the command line of the benchmark of a cold start."""

from __future__ import annotations

import argparse

import pytest

from bench.herd.options import MIB, layers, one_of, rate


def test_values() -> None:
    assert rate("200mbit") == 200
    assert rate("1gbit") == 1000
    assert layers("2x64MiB,300KiB") == [64 * MIB, 64 * MIB, 300 << 10]
    assert one_of("none", "off")("off,none") == ["off", "none"]


@pytest.mark.parametrize("text", ["", "200", "0mbit", "1 gbit", "1.5gbit", "-1mbit"])
def test_what_is_no_rate_is_named(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a rate such as 200mbit"):
        rate(text)


@pytest.mark.parametrize("text", ["", "4x", "0x1MiB", "4x0MiB", "1MiB,", "4x64MB"])
def test_what_is_no_image_is_named(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not layers such as 4x64MiB"):
        layers(text)


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="'maybe' is none of none, off"):
        one_of("none", "off")("none,maybe")
