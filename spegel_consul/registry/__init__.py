"""How clients and peers talk to this node: the distribution API, and the mirror behind it."""
