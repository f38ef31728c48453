"""``python -m spegel_consul`` is the console script."""

from spegel_consul.cli import main

main()
