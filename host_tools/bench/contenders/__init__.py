"""What is timed in turns on the same cores: steps of ways to tune, writers of text."""
