"""A Flower app: ``seedtune.runtime.fleet``, carried by Flower. See ``docs/fleet.md``."""
