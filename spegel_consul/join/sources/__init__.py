"""The places that name peers to join through, one module each."""
