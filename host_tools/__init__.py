"""The workstation side: profile, calibration text, data, evaluation, benchmarks, command line."""

import seedtune.runtime  # noqa: F401  before any other library: see its ``telemetry``
