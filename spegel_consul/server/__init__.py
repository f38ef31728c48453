"""How bytes leave: listening sockets and hypercorn on Trio."""
