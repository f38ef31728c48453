"""Bytes without copies: sendfile, splice, and tee to the hash. Nothing here knows HTTP or OCI."""
