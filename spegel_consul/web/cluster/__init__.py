"""The whole cluster as one node sees it: the other nodes are asked for their summaries when somebody looks."""
