"""HTTP, both sides: what server and clients share, and the clients.

Nothing here knows OCI or the ring.
"""
