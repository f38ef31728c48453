"""Content that this node does not have, fetched from peers that do. Nothing here knows Consul."""
