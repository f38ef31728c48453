"""Composition: the rooms are built, started in order and stopped in reverse."""
