"""The distribution API for clients and peers: one plan for a request, two paths to answer it, and the mirror."""
