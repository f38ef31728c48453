"""Queries that cost the ring or a peer something: lookups of content, trial pulls, locations of the node's images."""
