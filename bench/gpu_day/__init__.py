"""A day with a GPU: everything that only a GPU can tell, in one command that may be cut off."""
