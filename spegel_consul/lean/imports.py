"""Imports without the parts of libraries that this program never calls.

Some libraries import everything that they have, or that happens to be installed: structlog imports rich, httpx its
command line, and py-libp2p QUIC, pubsub and RSA. That costs a node memory for its whole life, and each start CPU time.
The import system is asked for a module only once, so a finder in front of the others decides what a name stands for:

* ``without_init``: a package whose ``__init__`` is not executed. Its modules are imported one by one.
* ``without``: a module during whose execution other modules can't be imported. It must handle their absence, because
  they are optional requirements of its library.
* ``placeholder``: a module with empty classes, for names that are imported and never called. A call of one of their
  methods raises TypeError.
* ``placeholder_for``: the same for one importing module alone; others import the real one.
* ``deferred``: a module for which other modules are imported when it uses their first name.

A room that uses a library declares what it leaves out of it before it imports it; the libraries of several rooms are
declared here. Only a name that nothing here can call may be left out, and docs/decisions.md lists the libraries. A new
way to leave something out belongs here.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, cast

if TYPE_CHECKING:
    from importlib.abc import Loader  # which would import importlib.resources, and half the standard library


class _EmptyPackage:
    def create_module(self, _: ModuleSpec) -> None:
        """Let the import system make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Execute nothing."""


class _Placeholder:
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def create_module(self, _: ModuleSpec) -> None:
        """Let the import system make the module."""

    def exec_module(self, module: ModuleType) -> None:
        for name in self._names:
            class_name, _, method = name.partition(".")
            if class_name not in module.__dict__:
                setattr(module, class_name, type(class_name, (), {"__module__": module.__name__}))
            if method:
                setattr(module.__dict__[class_name], method, staticmethod(_refusal(f"{module.__name__}.{name}")))


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: object) -> NoReturn:
        raise TypeError(f"{name} is left out of this program")

    return refuse


class _Instead:
    """Executes a module while other modules are replaced, or can't be imported (None)."""

    def __init__(self, loader: Loader, instead: dict[str, ModuleType | None]) -> None:
        self._loader, self._instead = loader, instead

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # a module that was imported before costs nothing more
        instead = {name: found for name, found in self._instead.items() if name not in sys.modules}
        sys.modules.update(instead)  # type: ignore[arg-type]  # None is what the import system documents
        try:
            self._loader.exec_module(module)
        finally:
            for name in instead:
                del sys.modules[name]


class _Later(ModuleType):
    """Stands for a module of the same name until one of its names is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


class _Finder:
    def __init__(self) -> None:
        self.empty: set[str] = set()
        self.placeholders: dict[str, tuple[str, ...]] = {}
        self.instead: defaultdict[str, dict[str, ModuleType | None]] = defaultdict(dict)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in self.placeholders:
            return ModuleSpec(fullname, cast("Loader", _Placeholder(self.placeholders[fullname])))
        if fullname not in self.empty and fullname not in self.instead:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        if fullname in self.empty:
            spec.loader = cast("Loader", _EmptyPackage())
        else:
            spec.loader = cast("Loader", _Instead(spec.loader, self.instead[fullname]))
        return spec


_finder = _Finder()


def without_init(*packages: str) -> None:
    """Import these packages without executing their ``__init__``."""
    _finder.empty.update(packages)


def without(module: str, *absent: str) -> None:
    """Execute ``module`` as if the modules ``absent`` were not installed."""
    _finder.instead[module].update(dict.fromkeys(absent))


def placeholder(module: str, *names: str) -> None:
    """Import ``module`` as one that has only empty classes of these names; ``A.b`` adds a method, which raises."""
    _finder.placeholders[module] = names


def placeholder_for(module: str, imported: str, *names: str) -> None:
    """Execute ``module`` with an ``imported`` that has only empty classes of these names."""
    stand_in = ModuleType(imported)
    _Placeholder(names).exec_module(stand_in)
    _finder.instead[module][imported] = stand_in


def deferred(module: str, *imports: str) -> None:
    """Execute ``module`` without importing ``imports``, which are imported when it uses one of their names."""
    _finder.instead[module].update((name, _Later(name)) for name in imports)


@contextmanager
def without_collector() -> Iterator[None]:
    """Import modules without garbage collections, because imports make many objects and hardly any garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def install() -> None:
    """Use the declarations of this module; called once, before any of the libraries is imported."""
    sys.meta_path.insert(0, _finder)
    placeholder("trio._dtls", "DTLSChannel", "DTLSChannelStatistics", "DTLSEndpoint")
    # tracebacks of rich show local variables, which may hold a token; log.py uses the plain ones
    without("structlog.dev", "rich", "colorama")
    without("structlog.tracebacks", "rich")
    without("structlog.threadlocal", "greenlet")
    deferred("structlog._native", "asyncio")  # for methods that nothing here calls
    deferred("structlog.stdlib", "asyncio")
    without("httpx", "httpx._main")  # the command line, which needs click, pygments and rich
    # clients speak HTTP/1.1 on trio
    without("httpcore", "anyio", "h2")
    # calls of containerd block in threads
    placeholder("grpc.aio")
    deferred("grpc._cython.cygrpc", "asyncio")
    # the transport of consul/api replaces the one on requests
    without_init("consul")
    # the server speaks HTTP/1.1 only, ignores an upgrade to websockets, and has no workers
    deferred("hypercorn.typing", "h2.events")
    for module in ("hypercorn.typing", "hypercorn.utils", "hypercorn.trio.run"):
        placeholder_for(module, "multiprocessing.synchronize", "Event")
    placeholder("hypercorn.protocol.h2", "H2Protocol")
    placeholder("hypercorn.protocol.ws_stream", "WSStream")
    # metrics are sent by this program
    exposition = "prometheus_client.exposition"
    placeholder_for(exposition, "http.server", "BaseHTTPRequestHandler")
    placeholder_for(exposition, "wsgiref.simple_server", "make_server", "WSGIRequestHandler", "WSGIServer")
