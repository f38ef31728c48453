# What does a person see?  Everything here only reads: a Node gathers the views of the other rooms, and health, API,
# pages and metrics are ways to show it.  The one exception acts on nothing but the log's level, and only for those who
# are on this machine.

"""Status page, API, metrics and health on the metrics port."""
