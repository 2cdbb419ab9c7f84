"""From a model to a bundle; ``export.py`` has the whole way on one page."""
