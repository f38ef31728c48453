"""Who is in the ring? The member table, gossip, timers, bans and rate limits. Nothing here knows provider records."""
