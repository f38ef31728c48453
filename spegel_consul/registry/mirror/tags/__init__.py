"""Tags: which of several answers is the newest, which one is too old, and whether the registry still says the same."""
