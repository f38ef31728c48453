"""``Check``: one finding about a node, as preflight, the start and dial-back report it.

A check tells the finding, its effect on pulls, and the lines to add. It also tells whether the sidecar may start: most
faults only cost speed, but a few make peers wait for a node that they can't reach. A new field of a finding belongs
here; the checks themselves belong to :mod:`spegel_consul.preflight`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum


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


def ok(name: str, says: str) -> Check:
    return Check(name, Status.OK, says)


def warn(name: str, says: str, fix: str = "") -> Check:
    return Check(name, Status.WARN, says, fix)


def fail(name: str, says: str, fix: str = "", *, fatal: bool = False) -> Check:
    return Check(name, Status.FAIL, says, fix, fatal)


def has_failed(checks: Iterable[Check]) -> bool:
    return any(check.status is Status.FAIL for check in checks)
