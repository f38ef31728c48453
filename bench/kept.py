# Every sample is kept, one to a line and without names, so that three rounds of all are a file that can lie beside the
# code: what was concluded from them can be checked, and concluded again.

"""A run as JSON: written at its end, and read to say the same again without another run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.cold import ColdSample
from bench.figures import Results
from bench.floors import Floor
from bench.lifecycle import Memory
from bench.rounds import Sample

_ROWS = {"samples": Sample, "cold": ColdSample}
_MEMORY = ("own_memory", "mirror_memory")


def document(machine: dict[str, Any], results: Results, floors: Sequence[Floor]) -> str:
    """The machine, the floors with their figures, and each sample as a list, in the order of ``fields``."""
    found = dataclasses.asdict(results)
    fields = {name: [field.name for field in dataclasses.fields(kind)] for name, kind in _ROWS.items()}
    rows = {name: [list(row.values()) for row in found.pop(name)] for name in _ROWS}
    judged = [dataclasses.asdict(floor) | {"verdict": floor.verdict.value} for floor in floors]
    parts = {
        "machine": json.dumps(machine),
        "floors": _lines(judged),
        "results": json.dumps(_rounded(found)),
        "fields": json.dumps(fields),
        **{name: _lines(row) for name, row in rows.items()},
    }
    return "{\n" + ",\n".join(f'"{name}": {part}' for name, part in parts.items()) + "\n}"


def save(path: Path, text: str) -> None:
    """Write ``text`` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text + "\n")
    draft.replace(path)


def load(path: Path) -> tuple[dict[str, Any], Results]:
    """Machine and results of a run. Raises OSError, or KeyError, TypeError or ValueError if it is no such file."""
    found = json.loads(path.read_text())
    results = Results(**found["results"])
    for name in _MEMORY:
        if (memory := found["results"][name]) is not None:
            setattr(results, name, Memory(**memory))
    names = found["fields"]
    results.samples = [Sample(**dict(zip(names["samples"], row, strict=True))) for row in found["samples"]]
    results.cold = [ColdSample(**dict(zip(names["cold"], row, strict=True))) for row in found["cold"]]
    return found["machine"], results


def _lines(items: Iterable[object]) -> str:
    return "[\n" + ",\n".join(json.dumps(_rounded(item)) for item in items) + "\n]"


def _rounded(value: Any) -> Any:
    """To six digits: more were not measured."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
