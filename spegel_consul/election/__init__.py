"""Which node leads? The election of the bootstrap peer by a session lock. Nothing here knows libp2p."""
