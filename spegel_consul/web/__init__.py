"""Status page, API, metrics and health on the metrics port.

All routes read: ``Node`` collects the views of the other packages, and health, API, pages and metrics show them. The
one exception sets the log's level, for requests from this machine only.
"""
