"""From a model to a bundle; ``export.py`` has the whole way on one page."""

import seedtune.runtime  # noqa: F401  before torch and transformers: see its ``telemetry``
