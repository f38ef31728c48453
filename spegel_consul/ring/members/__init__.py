"""The members of the ring: table, gossip, probes, bans and rate limits. Nothing here knows provider records."""
