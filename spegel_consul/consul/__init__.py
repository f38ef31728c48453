"""Consul: its API on Trio (``api``), the members of the cluster (``catalog``), the elected leader (``election``)."""
