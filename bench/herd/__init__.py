"""Measures a cold start; ``python -m bench.herd --help`` says how. Nodes and runtimes are those of the tests' lab."""
