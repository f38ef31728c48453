"""How is Consul asked? One typed client over python-consul2 on Trio."""
