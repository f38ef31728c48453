"""Flags about Consul that commands share.

A flag sets how Consul is used. The address and the credentials are the environment variables of Consul's own tools, so
they get no flags.
"""

from __future__ import annotations

from typing import Any

import click

from spegel_consul.commands.lock_options import leader_key
from spegel_consul.commands.option_types import DURATION, option, together
from spegel_consul.consul.catalog.service_definitions import ServiceMode
from spegel_consul.election.election_view import ElectionSettings

_DEFAULTS = ElectionSettings()

consul_options = together(
    option(
        "--consul-service",
        type=click.Choice([mode.value for mode in ServiceMode]),
        default=ServiceMode.AUTO.value,
        help="Registration of the services: auto registers those that the Nomad job does not, self all of them, "
        "external none; off also reads no catalog.",
    ),
    leader_key,
    option("--consul-session-ttl", type=DURATION, default=f"{_DEFAULTS.ttl:g}s", help="TTL of the lock's session."),
    option(
        "--consul-lock-delay",
        type=DURATION,
        default=f"{_DEFAULTS.lock_delay:g}s",
        help="How long Consul refuses a lock after its session has ended; the same on all nodes.",
    ),
)


def election_settings(given: dict[str, Any]) -> ElectionSettings:
    """Raises ValueError."""
    return ElectionSettings(
        key=given["consul_leader_key"],
        ttl=given["consul_session_ttl"],
        lock_delay=given["consul_lock_delay"],
    )
