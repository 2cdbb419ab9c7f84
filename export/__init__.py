"""From a model to a bundle: profile, mask, program, int4, lowering. ``export.py`` is the way."""
