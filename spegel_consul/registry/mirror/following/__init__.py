"""Content from nodes that are still downloading it: which node to follow, and the reports that keep it so."""
