"""Checks of this node's set-up, each with the lines to add if it fails."""
