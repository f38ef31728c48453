"""A frozen class with slots behaves as one of the standard library; only its definition is cheaper."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass as standard
from dataclasses import field
from typing import Any, ClassVar

import pytest

from spegel_consul.lean.dataclass import dataclass as lean

Decorator = Callable[..., Any]


def plain(dataclass: Decorator) -> type:
    @dataclass(frozen=True, slots=True)
    class Sample:
        """What it is."""

        number: int
        name: str = "none"

        @property
        def both(self) -> str:
            return f"{self.number} {self.name}"

    return Sample


def one_field(dataclass: Decorator) -> type:
    @dataclass(frozen=True, slots=True)
    class Sample:
        number: int

    return Sample


def hiding_all(dataclass: Decorator) -> type:
    @dataclass(frozen=True, slots=True)
    class Sample:
        number: int = field(compare=False)

    return Sample


def with_factory(dataclass: Decorator) -> type:
    @dataclass(frozen=True, slots=True)
    class Sample:
        number: int
        parts: Mapping[str, int] = field(default_factory=dict, hash=False)
        kind: ClassVar[str] = "kind"

    return Sample


def with_hidden(dataclass: Decorator) -> type:
    @dataclass(frozen=True, slots=True)
    class Sample:
        number: int
        secret: str = field(default="x", repr=False)
        note: str = field(default="y", compare=False)

    return Sample


def checked(dataclass: Decorator) -> type:
    @dataclass(frozen=True, slots=True)
    class Sample:
        number: int
        name: str = ""

        def __post_init__(self) -> None:
            if self.number < 0:
                raise ValueError("negative")

    return Sample


def derived(dataclass: Decorator) -> type:
    @dataclass(frozen=True, slots=True)
    class Base:
        number: int

    @dataclass(frozen=True, slots=True)
    class Sample(Base):
        name: str = "z"

    return Sample


def with_methods(dataclass: Decorator) -> type:
    @dataclass(frozen=True, slots=True)
    class Sample:
        number: int
        name: str = ""

        def __repr__(self) -> str:
            return "mine"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Sample) and self.number == other.number

        def __hash__(self) -> int:
            return 7

    return Sample


def with_equality_alone(dataclass: Decorator) -> type:
    @dataclass(frozen=True, slots=True)
    class Sample:
        number: int
        name: str = ""

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Sample)

    return Sample


SAMPLES = [plain, one_field, hiding_all, with_factory, with_hidden, checked, derived, with_methods, with_equality_alone]


def what_it_does(make: Callable[[Decorator], type], dataclass: Decorator) -> dict[str, object]:
    """What the two decorators have to have in common."""
    kind = make(dataclass)
    given = {"number": 1, "name": "a", "parts": {"a": 1}, "secret": "s", "note": "n"}
    names = [each.name for each in dataclasses.fields(kind)]
    first, same = kind(1), kind(1)
    full, other = kind(*(given[name] for name in names)), kind(2)
    seen: dict[str, object] = {
        "fields": names,
        "slots": [kind.__slots__, hasattr(first, "__dict__")],
        "parameters": list(inspect.signature(kind).parameters),
        "match": kind.__match_args__,
        "repr": [repr(first).rpartition(".")[2], repr(full).rpartition(".")[2]],
        "values": [[getattr(each, name) for name in names] for each in (first, full, other)],
        "equal": [first == same, first == full, first == other, first == 1, first != same, other == full],
        "hash": [hash(first) == hash(same), hash(first) == hash(other)],
        "as a dictionary": dataclasses.asdict(full),
        "replaced": repr(dataclasses.replace(full, number=5)).rpartition(".")[2],
        "one of each": kind(1) is not kind(1),
        "doc": (kind.__doc__ or "").startswith("What it is."),
    }
    for what, change in {
        "set": lambda: setattr(first, "number", 2),
        "delete": lambda: delattr(first, "number"),
        "too few": kind,
        "too many": lambda: kind(1, 2, 3, 4, 5),
        "unknown": lambda: kind(1, what=2),
        "negative": lambda: kind(-1),
    }.items():
        try:
            change()
            seen[what] = None
        except (AttributeError, TypeError, ValueError) as exc:
            seen[what] = (type(exc), isinstance(exc, AttributeError) and str(exc))
    return seen


@pytest.mark.parametrize("make", SAMPLES)
def test_it_is_as_the_standard_one(make: Callable[[Decorator], type]) -> None:
    assert what_it_does(make, lean) == what_it_does(make, standard)


def test_no_other_attribute_can_be_set() -> None:
    # the standard one raises a TypeError of its own making before Python 3.14
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'another'"):
        plain(lean)(1).another = 2  # type: ignore[attr-defined]


def test_a_class_without_fields() -> None:
    @lean(frozen=True, slots=True)
    class Nothing:
        pass

    @lean(frozen=True, slots=True)
    class Another:
        pass

    assert (Nothing() == Nothing(), Nothing() == Another(), hash(Nothing()) == hash(Nothing())) == (True, False, True)
    assert repr(Nothing()).endswith("Nothing()")


def test_factories_make_one_for_each() -> None:
    kind = with_factory(lean)
    assert kind(1).parts is not kind(1).parts


def test_only_the_constructor_is_compiled_for_a_class() -> None:
    first, second = plain(lean), checked(lean)
    shared = "__repr__", "__setattr__", "__delattr__"
    assert all(getattr(first, name) is getattr(second, name) for name in shared)
    assert all(getattr(first, name).__code__ is getattr(second, name).__code__ for name in ("__eq__", "__hash__"))


def test_other_classes_are_standard_ones() -> None:
    @lean(slots=True, order=True)
    class Ordered:
        number: int

    assert Ordered(1) < Ordered(2)
    assert sorted([Ordered(2), Ordered(1)])[0].number == 1
