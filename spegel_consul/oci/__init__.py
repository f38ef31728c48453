"""What is being asked for: references, digests, distribution paths and error bodies. No I/O of any kind."""
