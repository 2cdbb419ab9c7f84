"""The workstation side: profile, calibration text, data, evaluation, benchmarks, command line."""
