"""Flags that name the lock, for the sidecar and for commands that read it. A flag of a new lock belongs here."""

from __future__ import annotations

from spegel_consul.commands.option_types import option
from spegel_consul.election.election_view import ElectionSettings

leader_key = option(
    "--consul-leader-key",
    default=ElectionSettings().key,
    help="Key of the lock; one for each cluster that shares a Consul, and the same on all nodes of a cluster.",
)

nomad_variable = option(
    "--nomad-variable",
    default="nomad/jobs/spegel/leader",
    help="nomad-var: path of the variable that is locked; one for each cluster that shares a Nomad.",
)
