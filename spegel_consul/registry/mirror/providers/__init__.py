"""Which providers are asked, in which order, and which are left out."""
