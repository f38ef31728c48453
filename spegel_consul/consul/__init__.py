"""Who is in and who leads: Consul's HTTP API on Trio, the election of the bootstrap peer, the catalog."""
