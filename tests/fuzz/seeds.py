"""The inputs that fuzzing starts from, and those that once broke something: tests/fuzz/corpus/<target>/."""

from __future__ import annotations

from functools import cache
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


@cache
def files(target: str) -> tuple[Path, ...]:
    """The inputs of one target."""
    return tuple(sorted(path for path in (CORPUS / target).glob("*") if path.is_file()))


@cache
def _read(target: str) -> list[bytes]:
    return [path.read_bytes() for path in files(target)]


def seeds(target: str) -> list[bytes]:
    """Their bytes."""
    return _read(target)
