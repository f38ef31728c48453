"""The kinds of bootstrap, one module each."""
