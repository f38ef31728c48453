"""Files that somebody else writes, files of our own, and calls that may hang on a disk.

Nothing here knows what is in the files.
"""
