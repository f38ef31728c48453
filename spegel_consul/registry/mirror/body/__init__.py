"""The body behind an accepted head: from one or several peers, verified, to one or several clients."""
