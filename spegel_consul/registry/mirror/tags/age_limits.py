"""The age from which on a tag is not taken from a node: ``--tag-max-age``.

The setting promises that a tag was asked of its registry within that time. A tag of unknown age can't keep the promise,
so it is refused, too. Then the runtime asks upstream, which costs one small request and is never wrong.

A new rule about the limit of a name belongs here; the setting's text is parsed by
:mod:`spegel_consul.commands.option_types`.
"""

from __future__ import annotations

import re

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.reference import Reference


@dataclass(frozen=True, slots=True)
class AgeLimit:
    """Tags whose full name has ``pattern`` must be younger than ``seconds``; None: any age will do."""

    pattern: re.Pattern[str] | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class AgeLimits:
    """The limits in their order, of which the first that fits counts; a tag that none fits may have any age."""

    limits: tuple[AgeLimit, ...] = ()

    def of(self, reference: Reference) -> float | None:
        """Return the age in seconds that the tag must not reach, or None. A digest has no age."""
        if not self.limits or reference.digest is not None:
            return None
        name = str(reference)
        return next((each.seconds for each in self.limits if each.pattern is None or each.pattern.search(name)), None)

    def refuses(self, reference: Reference, age: float | None) -> bool:
        """Whether the tag is too old, or its age is unknown and has a limit."""
        limit = self.of(reference)
        return limit is not None and (age is None or age >= limit)
