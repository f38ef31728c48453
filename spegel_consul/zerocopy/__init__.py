"""How do bytes move without being copied? sendfile, splice, and tee to the hash. Nothing here knows HTTP or OCI."""
