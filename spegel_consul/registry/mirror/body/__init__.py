"""The body behind an accepted head: from one peer after another, verified, to one client or several."""
