"""Access to the metrics port: the names that it answers to, and the origins that may act on it."""
