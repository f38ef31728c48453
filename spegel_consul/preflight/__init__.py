"""Is this node right? Checks, with the lines to add where it is not."""
