"""Which weights are sensitive: empirical Fisher on generic text, and masks chosen from it."""

DEFAULT_MASK = "compact"
DEFAULT_FRACTION = 0.001
"""The top 0.1 % of arXiv 2406.02913."""
