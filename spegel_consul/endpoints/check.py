"""``Check``: one finding about a node, as preflight, the start and dial-back report it.

A check tells the finding, its effect on pulls, and the lines to add. It also tells whether the sidecar may start: most
faults only cost speed, but a few make peers wait for a node that they can't reach. A new field of a finding belongs
here; the checks themselves belong to :mod:`spegel_consul.preflight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from enum import Enum

from spegel_consul.lean.dataclass import dataclass


class Status(Enum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``fix``: the exact lines or command; ``fatal``: the sidecar must not start."""

    name: str
    status: Status
    says: str
    fix: str = ""
    fatal: bool = False

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "status": self.status.value}

    def lines(self) -> Iterable[tuple[str, str]]:
        """Lines for people, each a lead and a text; a wrapped text continues below the text."""
        yield f"{self.status.value:>4}  ", f"{self.name}: {self.says}"
        yield from (("      | ", line) for line in self.fix.splitlines())


def verdict(checks: Sequence[Check]) -> str:
    """One line that says what the findings mean together."""
    failed, warned = (
        [check.name for check in checks if check.status is status] for status in (Status.FAIL, Status.WARN)
    )
    warnings = f"{len(warned)} warning{'s' if len(warned) > 1 else ''} ({_names(warned)})"
    if failed:
        fatal = any(check.fatal for check in checks)
        effect = "the sidecar does not start" if fatal else "pulls may not use the mirror"
        also = f", and {warnings}" if warned else ""
        return f"not ready: {len(failed)} of {len(checks)} checks failed ({_names(failed)}){also}; {effect}"
    return f"ready, with {warnings}" if warned else f"ready: all {len(checks)} checks are ok"


def _names(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def ok(name: str, says: str) -> Check:
    return Check(name, Status.OK, says)


def warn(name: str, says: str, fix: str = "") -> Check:
    return Check(name, Status.WARN, says, fix)


def fail(name: str, says: str, fix: str = "", *, fatal: bool = False) -> Check:
    return Check(name, Status.FAIL, says, fix, fatal)


def has_failed(checks: Iterable[Check]) -> bool:
    return any(check.status is Status.FAIL for check in checks)
