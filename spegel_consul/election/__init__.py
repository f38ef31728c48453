"""Which node leads? The election of the bootstrap peer by a lock. Nothing here knows Consul, Nomad or libp2p."""
