"""Content that this node does not have, fetched from peers that have it. Nothing here knows Consul."""
