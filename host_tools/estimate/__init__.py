"""Memory and time of each stage, before it runs."""
