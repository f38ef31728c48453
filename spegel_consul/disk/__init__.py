"""Files of other programs, files of this program, and calls that may hang on a disk.

Modules here do not know the content of the files.
"""
