"""Measures a pull through the CRI; ``python -m bench.pull --help`` says how. The parts are those of the tests' lab."""
