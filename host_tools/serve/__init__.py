"""``seedtune serve``: a bundle and its runs behind the interface that OpenAI's clients speak."""
