# A check says what was seen, what that means for people who wait for a pull, and the lines to add.  Whether the sidecar
# may start in spite of it is a part of the check: most faults cost speed, few make a node a trap for others.

"""What is found out about a node before it is relied upon."""

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
    """One finding. ``fix``: the exact lines or command; ``fatal``: the sidecar must not start like this."""

    name: str
    status: Status
    says: str
    fix: str = ""
    fatal: bool = False

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "status": self.status.value}

    def lines(self) -> Iterable[tuple[str, str]]:
        """For people: lead and text of each line; a text that is wrapped goes on below itself."""
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
