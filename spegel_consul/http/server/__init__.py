"""The server side of HTTP: accept, limits, idle connections, heads and hypercorn. Nothing here knows the content."""
