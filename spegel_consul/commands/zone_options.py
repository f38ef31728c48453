"""Flags about zones, and the settings that they make. A flag about what is near belongs here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from spegel_consul.commands.option_types import Parsed, option, together
from spegel_consul.places import Place, known_name, parse_place
from spegel_consul.registry.mirror.providers.nearness import CrossZone
from spegel_consul.sidecar.settings import ZoneFrom

zone_options = together(
    option(
        "--zone",
        type=Parsed("place", parse_place),
        default="",
        show_default=False,
        help="Place of this node: ZONE, DATACENTER/ZONE or DATACENTER/ZONE/RACK. Nodes ask near ones first. Names that"
        " are left out come from --zone-from.",
    ),
    option(
        "--zone-from",
        type=click.Choice([each.value for each in ZoneFrom]),
        default=ZoneFrom.AUTO.value,
        help="Source of the rest of the place. consul: the agent's datacenter, and its node metadata zone or az, and"
        " rack; nomad: the datacenter (NOMAD_DC); auto: consul if it is used, else nomad; off: none.",
    ),
    option(
        "--cross-zone",
        type=click.Choice([each.value for each in CrossZone]),
        default=CrossZone.FALLBACK.value,
        help="Content from nodes of other zones. fallback: for want of a near node that answers; prefer: after the near"
        " ones that are known, without a wait for others; never: not at all.",
    ),
)


def place_settings(given: Mapping[str, Any], env: Mapping[str, str], *, uses_consul: bool) -> dict[str, Any]:
    """The settings about the place of this node. Raises ValueError if the source can't be used."""
    place, source = given["zone"], ZoneFrom(given["zone_from"])
    if source is ZoneFrom.CONSUL and not uses_consul:
        raise ValueError("--zone-from=consul needs Consul: give --bootstrap-kind=consul or catalog, or --zone instead")
    if source is ZoneFrom.NOMAD and not known_name(env.get("NOMAD_DC")):
        raise ValueError("--zone-from=nomad needs NOMAD_DC, which Nomad sets in its tasks: give --zone instead")
    if source is ZoneFrom.NOMAD or (source is ZoneFrom.AUTO and not uses_consul):
        place = place.or_else(Place(known_name(env.get("NOMAD_DC"))))
    from_consul = source is ZoneFrom.CONSUL or (source is ZoneFrom.AUTO and uses_consul)
    return {"place": place, "place_from_consul": from_consul}
