"""The schedule library: one kind of kernel a file, each a description and the loops that it becomes."""
