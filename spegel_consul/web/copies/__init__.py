"""Copies: how many nodes have each of this node's images, and which images would be lost with which node."""
