"""Dataclasses that are cheap to define: the standard decorator, except for classes that are frozen and have slots.

The standard library compiles six methods for each frozen class before Python 3.13, which took a fifth of the CPU of a
start and over a megabyte of memory for good. Here only ``__init__`` is compiled for a class; the other methods are
shared by all of them, or get the fields by :func:`operator.attrgetter`. What a user of the class sees is the same, and
``__init__`` is faster, because it fills the slots directly. Pickling is not supported.

Type checkers see the standard decorator. A frozen class with ``order``, ``kw_only`` or a field without a parameter has
no support here until one is needed; it then belongs here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    import dataclasses
    from operator import attrgetter

    def dataclass(**options):
        """Return the decorator for these options of :func:`dataclasses.dataclass`."""
        return _frozen if options == {"frozen": True, "slots": True} else dataclasses.dataclass(**options)

    def _frozen(cls):
        made = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True)(cls)
        fields = dataclasses.fields(made)
        compared = _values(field for field in fields if field.compare)
        hashed = _values(field for field in fields if (field.compare if field.hash is None else field.hash))

        def equals(self, other):
            return compared(self) == compared(other) if other.__class__ is self.__class__ else NotImplemented

        def hash_of(self):
            return hash(hashed(self))

        methods = {
            "__init__": _init(made, fields),
            "__repr__": _repr,
            "__eq__": equals,
            "__hash__": hash_of,
            "__setattr__": _refuse_to_set,
            "__delattr__": _refuse_to_delete,
        }
        for name, method in methods.items():
            if cls.__dict__.get(name) is None:  # a class with __eq__ alone has None as __hash__
                setattr(made, name, method)
        return made

    def _values(fields):
        names = [field.name for field in fields]
        return attrgetter(*names) if names else lambda _: ()

    def _init(made, fields):
        scope, parameters, lines = {"MISSING": dataclasses.MISSING}, ["self"], []
        for field in fields:
            name, value = field.name, field.name
            scope[f"set_{name}"] = getattr(made, name).__set__
            if field.default is not dataclasses.MISSING:
                scope[f"default_{name}"] = field.default
                parameters.append(f"{name}=default_{name}")
            elif field.default_factory is not dataclasses.MISSING:
                scope[f"make_{name}"] = field.default_factory
                parameters.append(f"{name}=MISSING")
                value = f"make_{name}() if {name} is MISSING else {name}"
            else:
                parameters.append(name)
            lines.append(f" set_{name}(self, {value})")
        if hasattr(made, "__post_init__"):
            lines.append(" self.__post_init__()")
        exec(f"def __init__({', '.join(parameters)}):\n" + "\n".join(lines or [" pass"]), scope)  # noqa: S102
        return scope["__init__"]

    def _repr(self):
        fields = (field.name for field in dataclasses.fields(self) if field.repr)
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in fields)})"

    def _refuse_to_set(self, name, value):
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def _refuse_to_delete(self, name):
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
