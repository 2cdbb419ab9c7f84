"""From a model to a bundle in a child process, kept by content for the next time."""
