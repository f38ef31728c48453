"""Questions to peers for one piece of content: to one that has it, and to one that is still downloading it."""
