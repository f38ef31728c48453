"""Consul: its API on Trio (``api``), the members of the cluster (``catalog``), the leader's key (``consul_lock``)."""
