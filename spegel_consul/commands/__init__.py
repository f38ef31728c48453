"""The commands, one file for each group; ``cli.py`` registers them. A command imports its dependencies when it runs."""
