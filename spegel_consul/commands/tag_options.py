"""Options of ``registry`` that say which tags are taken from other nodes. A new option about tags belongs here."""

from __future__ import annotations

from typing import Any

import click

from spegel_consul.commands.option_types import AGE_LIMIT, option, together
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.registry.mirror.tags.age_limits import AgeLimits

tag_options = together(
    option(
        "--tag-max-age",
        type=AGE_LIMIT,
        multiple=True,
        help="Age from which on a tag is not taken from nodes, so that the runtime asks upstream: 30m for all tags, or"
        " REGEX=30m for names with that expression; off for no limit; may be repeated, and the first that fits counts."
        "  [default: off]",
    ),
    option(
        "--tag-check",
        type=click.Choice(["off", "upstream"]),
        default="off",
        help="upstream: ask the image's registry whether a tag still stands for the digest, by HEAD, before it is sent;"
        " a tag whose registry can't be reached is sent as without the check. Needs --mirrored-registries.",
    ),
)


def tag_max_age(given: dict[str, Any]) -> AgeLimits:
    """Return the limits of ``--tag-max-age``."""
    return AgeLimits(given["tag_max_age"])


def checks_tags(given: dict[str, Any], images: ImageFilter) -> bool:
    """Whether tags are checked at their registries. Raises click.UsageError if clients could name any registry."""
    if given["tag_check"] != "upstream":
        return False
    if not images.registries:
        raise click.UsageError(
            "--tag-check=upstream needs --mirrored-registries, because a client could name any host as a registry"
        )
    return True
