"""Status page, API, metrics and health on the metrics port.

``Node`` collects the views of the other packages, and health, API, pages and metrics show them. All routes read but
two: one sets the log's level, and ``preheat`` has runtimes pull an image, if this node is told to take part.
"""
