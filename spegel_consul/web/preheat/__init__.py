"""Preheats: an image is pulled by the runtimes of many nodes at the same time, before a job needs it there."""
