# Runs inside of the sidecar that bench.memory looks into, and costs it less than a megabyte.  The figures of a whole
# sidecar are taken from one without it.

"""``python bench/memory_probe.py FILE registry …``: a sidecar of the tree in the working directory.

It writes figures of its memory to FILE at SIGUSR2.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import signal
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

KIB = 1024


class MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc, in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


class ImportMeter:
    """Anonymous memory that the import of each package added, without the packages that it imported in turn.

    The hook is private to importlib, because a finder does not see modules that other finders find.
    """

    def __init__(self) -> None:
        self.kib: Counter[str] = Counter()
        self.modules: Counter[str] = Counter()
        self._stack = ["interpreter"]
        self._mark = 0
        bootstrap: Any = importlib._bootstrap  # type: ignore[attr-defined]
        self._load = bootstrap._load_unlocked
        bootstrap._load_unlocked = self._metered

    def _metered(self, spec: Any) -> Any:
        package = spec.name.split(".")[0]
        self.modules[package] += 1
        self._charge()
        self._stack.append(package)
        try:
            return self._load(spec)
        finally:
            self._charge()
            self._stack.pop()

    def _charge(self) -> None:
        now = anonymous_kib()
        self.kib[self._stack[-1]] += now - self._mark
        self._mark = now


def anonymous_kib() -> int:
    """Anonymous resident memory of this process."""
    # without pathlib and as bytes, because those or a codec may be what is being imported
    with open("/proc/self/status", "rb") as file:  # noqa: PTH123
        return next(int(line.split()[1]) for line in file if line.startswith(b"RssAnon"))


def figures(meter: ImportMeter) -> dict[str, Any]:
    """The figures as they are now, for JSON; sizes in KiB."""
    before = anonymous_kib()
    collected = gc.collect()
    frozen = gc.get_freeze_count()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallInfo
    heap, blocks = libc.mallinfo2(), sys.getallocatedblocks()
    libc.malloc_trim(0)
    trimmed = before - anonymous_kib()
    gc.unfreeze()  # for get_objects; this process has no further use
    objects = gc.get_objects()
    return {
        "anonymous": before,
        "collected": collected,
        "blocks": blocks,
        "heap used": heap.uordblks // KIB,
        "heap free": heap.fordblks // KIB,
        "heap mapped": heap.hblkhd // KIB,
        "frozen": frozen,
        "trimmed": trimmed,
        "objects": Counter(str(type(each).__name__) for each in objects).most_common(25),
        "kinds": _kinds(objects),
        "imports": meter.kib.most_common(),
        "modules": dict(meter.modules),
    }


def _kinds(objects: list[Any]) -> dict[str, int]:
    """KiB of code, its docstrings, classes and dictionaries."""
    kinds: Counter[str] = Counter()
    seen: set[int] = set()

    def add(kind: str, each: object) -> None:
        if id(each) not in seen:
            seen.add(id(each))
            kinds[kind] += sys.getsizeof(each)

    def code(each: types.CodeType) -> None:
        if id(each) in seen:
            return
        for part in (each, each.co_names, each.co_varnames, each.co_consts, each.co_linetable, each.co_exceptiontable):
            add("code", part)
        for const in each.co_consts:
            if isinstance(const, types.CodeType):
                code(const)
            elif isinstance(const, str):
                add("docstrings" if const is each.co_consts[0] and " " in const else "constants", const)

    for each in objects:
        if type(each) is types.FunctionType:
            add("functions", each)
            code(each.__code__)
            if each.__annotations__:
                add("annotations", each.__annotations__)
        elif isinstance(each, type):
            add("classes", each)
            add("docstrings", vars(each).get("__doc__"))
        elif type(each) in (dict, set, frozenset, list, tuple):
            add("dictionaries, sets, lists, tuples", each)
    return {kind: size // KIB for kind, size in kinds.items()}


def main() -> None:
    """Run the command line behind FILE."""
    out = sys.argv.pop(1)
    sys.path[0] = ""
    meter = ImportMeter()

    def report(*_: object) -> None:
        new = Path(f"{out}.new")
        new.write_text(json.dumps(figures(meter)))
        new.rename(out)

    signal.signal(signal.SIGUSR2, report)
    from spegel_consul import cli

    cli.main()


if __name__ == "__main__":
    main()
